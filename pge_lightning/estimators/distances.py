"""Distances between data sets as estimators: no source is opened but for what the library tells of its data."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from pge_lightning.errors import PGEError
from pge_lightning.estimators.estimator import Estimate, Estimates, Need, each, of_replicates
from pge_lightning.estimators.signatures import lacking, own_signature, signature_of
from pge_lightning.estimators.target import Target
from pge_lightning.functional.distances import gaussian_wasserstein, otdd, task2vec_distances
from pge_lightning.probe import Probe
from pge_lightning.source import Source
from pge_lightning.summary import KIND, SAMPLES, Summary, summarise

__all__ = ["InputStatistics", "OTDDEstimator", "Task2VecEstimator"]

_COST = "a summary of the target's samples, and {} per source"


@dataclass(frozen=True)
class Task2VecEstimator:
    """Sources by their Task2Vec distance to the target; lower is closer, in [-alpha, 1], or [0, 1] if symmetric.

    Args:
        probe: The recipe, or the name of a shipped one, with ``statistic="fisher"``; the sources must hold signatures
            of it.
        asymmetric: Whether the source's distance from a trivial task is taken off.
        alpha: How much of it.
        budget: Rung of the ladder to compare at. By default the largest that the target fills and all readable
            sources hold.
        name: The column in tables.

    Raises:
        ValueError: If the probe keeps gradients, or there is none of its name.
    """

    probe: Probe | str = "task2vec"
    asymmetric: bool = True
    alpha: float = 0.15
    budget: int | None = None
    name: str = "task2vec"
    higher_is_better: bool = field(default=False, init=False)
    needs: frozenset[Need] = field(default=frozenset({"inputs", "labels", "signatures"}), init=False)
    cost: str = field(default="one collection for the target, whatever the number of sources", init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "probe", Probe.of(self.probe))
        if Probe.of(self.probe).statistic != "fisher":
            raise ValueError(
                "Expected a probe of `statistic='fisher'`, but got one that keeps gradients. Take 'task2vec'."
            )

    @property
    def probes(self) -> list[Probe]:
        """Its probe."""
        return [Probe.of(self.probe)]

    def estimate(self, target: Target, sources: Sequence[str]) -> Estimates:
        """Compare the target's Fisher information with that of sources.

        Args:
            target: The target.
            sources: Names of sources.

        Returns:
            Source to its distance, one replicate per restart, or to the reason why it does not compare.
        """
        probe = Probe.of(self.probe)
        if (errors := lacking(target, sources, probe)) is not None:
            return errors
        own, rung = own_signature(target, probe, self.budget)

        def judge(name: str) -> Estimate:
            signature = signature_of(_opened(target, name), probe, rung)
            signature.check_comparable(own)
            distances = task2vec_distances(signature.units, own.units, self.asymmetric, self.alpha)
            return of_replicates(distances.tolist())

        return target.alone(lambda: each(sources, judge))


@dataclass(frozen=True)
class OTDDEstimator:
    """Sources by their optimal-transport distance to the target; lower is closer, at least 0.

    The library must hold summaries of the sources' samples (``PrincipalGradientCallback(summary=500)``).

    Args:
        samples: Most samples of the target to compare.
        regularisation: Weight of the plan's entropy, as a share of the largest cost; 0 solves the problem exactly.
        name: The column in tables.
    """

    samples: int = SAMPLES
    regularisation: float = 0.0
    name: str = "otdd"
    higher_is_better: bool = field(default=False, init=False)
    needs: frozenset[Need] = field(default=frozenset({"inputs", "labels", "summaries"}), init=False)
    cost: str = field(default=_COST.format("one transport problem of some hundred samples"), init=False)

    def estimate(self, target: Target, sources: Sequence[str]) -> Estimates:
        """Compare samples and labels.

        Args:
            target: The target.
            sources: Names of sources.

        Returns:
            Source to its distance, or to an error where the library holds no summary or there are no classes.
        """

        def distance(source: Summary, own: Summary) -> Tensor:
            return otdd(source.inputs, source.classes, own.inputs, own.classes, self.regularisation)

        return _compare(target, sources, self.samples, distance)


@dataclass(frozen=True)
class InputStatistics:
    """Sources by the Fréchet distance of their reduced inputs to the target's; lower is closer, at least 0.

    The cheapest baseline that sees data. The library must hold summaries of the sources' samples.

    Args:
        samples: Most samples of the target to compare.
        name: The column in tables.
    """

    samples: int = SAMPLES
    name: str = "input_statistics"
    higher_is_better: bool = field(default=False, init=False)
    needs: frozenset[Need] = field(default=frozenset({"inputs", "summaries"}), init=False)
    cost: str = field(default=_COST.format("one matrix decomposition"), init=False)

    def estimate(self, target: Target, sources: Sequence[str]) -> Estimates:
        """Compare mean and covariance of the inputs.

        Args:
            target: The target.
            sources: Names of sources.

        Returns:
            Source to its distance, or to an error where the library holds no summary.
        """
        return _compare(target, sources, self.samples, lambda x, own: gaussian_wasserstein(x.inputs, own.inputs))


def _compare(
    target: Target, sources: Sequence[str], samples: int, distance: Callable[[Summary, Summary], Tensor]
) -> Estimates:
    probe = Probe(KIND, restarts=1, steps=1, batch_size=1, budgets=(samples,))
    collector = target.collector(probe)
    own = summarise(collector.pool, collector.batches, samples)

    def judge(name: str) -> Estimate:
        return Estimate(distance(_summary_of(_opened(target, name)), own).item())

    return target.alone(lambda: each(sources, judge))


def _opened(target: Target, name: str) -> Source:
    source = target.sources[name]
    if isinstance(source, Exception):
        raise source
    return source


def _summary_of(source: Source) -> Summary:
    tensors = source.load_extra(KIND)
    if tensors is None:
        raise PGEError(
            f"Expected a summary of the samples of source '{source.name}', but the library holds none. "
            "Train it with `PrincipalGradientCallback(summary=500)`, or choose an estimator that needs no summaries."
        )
    return Summary(**tensors)

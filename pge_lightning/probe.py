"""A probe: the recipe that must be the same for all data sets whose signatures are compared."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal, TypeAlias, get_args

__all__ = ["PROBES", "PretextKind", "Probe", "Walk", "is_name"]

PretextKind: TypeAlias = Literal["auto", "reduced", "projection", "words"]


def is_name(text: str) -> bool:
    """Whether a name of a probe or source is fit for a file: letters, digits, ``-_.``, not starting with a dot."""
    return bool(text) and all(c.isalnum() or c in "-_." for c in text) and not text.startswith(".")


@dataclass(frozen=True)
class Walk:
    """A warm-up of its own for targets.

    Args:
        steps: Optimizer steps.
        batch_size: Samples per step.
        lr: Learning rate.
        restarts: How many of the sources' restarts are taken, the first ones; ``None`` takes all.

    Raises:
        ValueError: If a field is out of its range.
    """

    steps: int
    batch_size: int
    lr: float
    restarts: int | None = None

    def __post_init__(self) -> None:
        _check_walk(self)


@dataclass(frozen=True)
class Probe:
    """How principal gradients are collected. Two signatures compare only where their recipes are equal.

    The target's may come from a shorter warm-up than the sources': what a ranking needs is that all sources are alike,
    and that restart k starts from the same weights on both sides.

    Args:
        name: What the probe is called in tables and file names; not part of the recipe.
        restarts: Number of seeded draws of all weights; ``None`` takes one per mini-batch of a single pass.
        steps: Optimizer steps of the warm-up that follows each restart.
        optimizer: ``"adam"`` (the expectation in the optimizer's own geometry) or ``"sgd"`` (the plain expectation).
        lr: Learning rate of the warm-up.
        batch_size: Samples per step.
        budgets: The ladder of sample budgets: a signature is collected for each rung that the data set can fill, and
            every restart draws its rung's samples afresh. Empty means one signature from the whole data set.
        seed: Base of all restart seeds.
        paired: Whether restart k starts every data set from equal encoder weights. Unpaired restarts have nothing
            in common between data sets, so that only their mean is kept.
        statistic: What is kept of the encoder: its mean update along the warm-up (``"gradient"``), or, with the head
            alone warmed up, the diagonal of its empirical Fisher information (``"fisher"``). Part of the recipe where
            it is not the default.
        pretext: For a probe without labels, what the encoder's features are asked of the inputs instead: the input at
            a lower resolution (``"reduced"``), a fixed random projection of it (``"projection"``), which samples share
            words (``"words"``), or what fits the type of the inputs (``"auto"``). ``None`` follows the loss of the
            module. Part of the recipe where it is not the default.
        target: How a target is walked, on all samples that it has (of a stream, as many as the largest rung); not part
            of the recipe, so that sources need not be collected again. ``None`` walks it as the sources, at a rung that
            all of them hold.

    Raises:
        ValueError: If a field is out of its range.
    """

    name: str = "default"
    restarts: int | None = 8
    steps: int = 60
    optimizer: Literal["adam", "sgd"] = "adam"
    lr: float = 2e-3
    batch_size: int = 64
    budgets: tuple[int, ...] = (200, 1000, 5000)
    seed: int = 0
    paired: bool = True
    statistic: Literal["gradient", "fisher"] = "gradient"
    pretext: PretextKind | None = None
    target: Walk | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "budgets", tuple(sorted(self.budgets)))
        if isinstance(self.target, Mapping):  # from a file, or a configuration
            object.__setattr__(self, "target", Walk(**self.target))
        if not is_name(self.name):
            raise ValueError(f"Expected `name` of letters, digits, '-', '_' and '.', but got {self.name!r}.")
        if self.restarts is None and self.paired:
            raise ValueError("Expected a number of `restarts` for paired restarts, but got None. Set `paired=False`.")
        if self.restarts is not None and self.restarts < 1:
            raise ValueError(f"Expected `restarts` to be at least 1, but got {self.restarts}.")
        if self.target is not None and not (self.paired and self.walks):
            raise ValueError(
                "Expected `target` to be None, but got a walk: only mean updates of paired restarts under Adam compare "
                "across walks."
            )
        taken = None if self.target is None else self.target.restarts
        if taken is not None and not 1 <= taken <= (self.restarts or 1):
            raise ValueError(
                f"Expected `restarts` of `target` to be some of the sources' {self.restarts}, but got {taken}. Leave "
                "it out to take all."
            )
        if self.optimizer not in ("adam", "sgd"):
            raise ValueError(f"Expected `optimizer` to be 'adam' or 'sgd', but got {self.optimizer!r}.")
        if self.statistic not in ("gradient", "fisher"):
            raise ValueError(f"Expected `statistic` to be 'gradient' or 'fisher', but got {self.statistic!r}.")
        if self.pretext is not None and self.pretext not in get_args(PretextKind):
            raise ValueError(
                f"Expected `pretext` to be None or one of {get_args(PretextKind)}, but got {self.pretext!r}."
            )
        _check_walk(self)
        if self.budgets and self.budgets[0] < self.batch_size:
            raise ValueError(
                f"Expected every rung of `budgets` to fill a batch of {self.batch_size}, but got {self.budgets[0]}. "
                "Lower `batch_size` or drop the rung."
            )

    @classmethod
    def of(cls, probe: "Probe | str") -> "Probe":
        """A probe as it is, or a shipped one by its name.

        Args:
            probe: The probe, or a key of :data:`PROBES`.

        Returns:
            The probe.

        Raises:
            ValueError: If no probe has that name.
        """
        if isinstance(probe, Probe):
            return probe
        if probe not in PROBES:
            raise ValueError(f"Expected `probe` to be a Probe or one of {sorted(PROBES)}, but got {probe!r}.")
        return PROBES[probe]

    @property
    def recipe(self) -> dict[str, Any]:
        """Everything two sources' signatures must share, as plain JSON types: not the name, the ladder and the target.

        Fields that came later count where they are not the default: signatures collected before stay comparable.
        """
        later = {"statistic": "gradient", "pretext": None}
        found = {field.name: getattr(self, field.name) for field in fields(self)}
        return {
            key: value
            for key, value in found.items()
            if key not in ("name", "budgets", "target") and (key not in later or value != later[key])
        }

    @property
    def of_target(self) -> "Probe":
        """The probe that a target's signature is collected with; this one, if it is walked as the sources."""
        if self.target is None:
            return self
        own = {key: value for key, value in asdict(self.target).items() if value is not None}
        return replace(self, **own, target=None)

    @property
    def walks(self) -> bool:
        """Whether what is kept is the way from the start to the end, and not a sum along it."""
        return self.statistic == "gradient" and self.optimizer == "adam"


def _check_walk(walk: Walk | Probe) -> None:
    for field in ("steps", "batch_size"):
        if getattr(walk, field) < 1:
            raise ValueError(f"Expected `{field}` to be at least 1, but got {getattr(walk, field)}.")
    if not walk.lr > 0:
        raise ValueError(f"Expected `lr` to be positive, but got {walk.lr}.")


PROBES = {
    "default": Probe(restarts=20, steps=120, budgets=(200, 1000), target=Walk(steps=30, batch_size=32, lr=2e-3)),
    "fast": Probe(name="fast", restarts=2, steps=30, budgets=(200,)),
    "published": Probe(name="published", restarts=None, steps=1, optimizer="sgd", lr=1.0, budgets=(), paired=False),
    "task2vec": Probe(name="task2vec", restarts=2, steps=400, lr=5e-3, batch_size=8, statistic="fisher"),
    "label_free": Probe(
        name="label_free",
        steps=120,
        budgets=(200, 1000),
        pretext="auto",
        target=Walk(steps=30, batch_size=32, lr=2e-3),
    ),
}

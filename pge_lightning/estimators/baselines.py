"""Trivial baselines: what anybody knows without looking at the target. A score that loses to them earns nothing."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch

from pge_lightning.errors import SilentError
from pge_lightning.estimators.estimator import Estimate, Estimates, Need, each
from pge_lightning.estimators.target import Target
from pge_lightning.isolation import derive_seed
from pge_lightning.source import Source

__all__ = ["FACTS", "FactEstimator", "RandomOrder"]

Fact = Literal["source_size", "source_classes", "source_metric"]
FACTS: dict[str, str] = {"source_size": "samples", "source_classes": "classes", "source_metric": "value"}


@dataclass(frozen=True)
class FactEstimator:
    """Sources by one fact that the library knows of them; higher is taken to be better.

    Args:
        fact: ``"source_size"`` (training samples), ``"source_classes"`` or ``"source_metric"`` (its own validation
            metric). Also the column in tables.

    Raises:
        ValueError: If there is no such fact.
    """

    fact: Fact = "source_size"
    higher_is_better: bool = field(default=True, init=False)
    needs: frozenset[Need] = field(default=frozenset({"facts"}), init=False)
    cost: str = field(default="nothing", init=False)

    def __post_init__(self) -> None:
        if self.fact not in FACTS:
            raise ValueError(f"Expected `fact` to be one of {list(FACTS)}, but got {self.fact!r}.")

    @property
    def name(self) -> str:
        """The fact."""
        return self.fact

    def estimate(self, target: Target, sources: Sequence[str]) -> Estimates:
        """Look the fact up.

        Args:
            target: The target; only its library counts.
            sources: Names of sources.

        Returns:
            Source to the fact, or to an error where it is not known.
        """

        def look_up(name: str) -> Estimate:
            source = target.sources[name]
            value = getattr(source.facts, FACTS[self.fact]) if isinstance(source, Source) else None
            if value is None:
                raise SilentError(f"Expected source '{name}' to know its {FACTS[self.fact]}, but it does not.")
            return Estimate(float(value))

        return target.alone(lambda: each(sources, look_up))


@dataclass(frozen=True)
class RandomOrder:
    """Sources in a random order: what an estimator must beat.

    Args:
        seed: Stands for one order per target, the same on every machine.
        name: The column in tables.
    """

    seed: int = 0
    name: str = "random"
    higher_is_better: bool = field(default=True, init=False)
    needs: frozenset[Need] = field(default=frozenset(), init=False)
    cost: str = field(default="nothing", init=False)

    def estimate(self, target: Target, sources: Sequence[str]) -> Estimates:
        """Draw a number for each source.

        Args:
            target: The target; only its name counts.
            sources: Names of sources.

        Returns:
            Source to a number that is uniform in [0, 1).
        """

        def draw(name: str) -> Estimate:
            seed = derive_seed(self.seed, "random order", target.name or "", name)
            return Estimate(torch.rand((), generator=torch.Generator().manual_seed(seed)).item(), math.nan)

        return each(sources, draw)

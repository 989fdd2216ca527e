"""Advise: gather what is known of the best source and of starting from scratch, and decide between them."""

from dataclasses import replace

from pge_lightning.decide import Decision, Evidence, decide, probe_evidence, race_evidence, records_evidence
from pge_lightning.errors import PGEError
from pge_lightning.estimators.estimator import Estimate
from pge_lightning.estimators.feature_score import FeatureScore
from pge_lightning.estimators.target import Target
from pge_lightning.race import Race, RacePlan
from pge_lightning.rank import Ranking

__all__ = ["DRAWS", "advise", "with_decision"]

# Re-initialised encoders that a linear probe is compared with.
DRAWS = 3


def with_decision(target: Target, ranking: Ranking, plan: RacePlan | None = None, candidates: int = 4) -> Ranking:
    """Weigh the best source of a ranking against starting from scratch, by the evidence there is.

    That is the race, where there is one; else records of past fine-tunings beside scratch and, where the ranking has a
    linear probe of the best source, the same probe on re-initialised encoders.

    Args:
        target: What the ranking was made for.
        ranking: The ranking.
        plan: What a race of the best sources and the model as it is may cost; none is run without it.
        candidates: How many sources race.

    Returns:
        The ranking with its decision; unchanged where every source failed. After a race the source that stayed longest
        stands for the best one.
    """
    lines = [line.name for line in ranking.sources if line.estimate is not None]
    if not lines:
        return ranking
    race = None
    if plan is not None:
        try:
            race = target.race(lines[:candidates], plan)
        except PGEError as error:
            ranking = replace(ranking, notes=(*ranking.notes, f"No race: {error}"))
    best = (race.best if race is not None else None) or lines[0]
    ties = ranking.ties if best == lines[0] else []
    return ranking.decided(target.alone(lambda: advise(target, best, ties, race)), race)


def advise(target: Target, best: str, ties: list[str], race: Race | None = None) -> Decision:
    """Decide between a source and scratch; on rank zero only.

    Args:
        target: The target.
        best: Name of the source.
        ties: Sources that cannot be told from it.
        race: A race that it took part in.

    Returns:
        The decision, with its reasons.
    """
    if race is not None and (ran := race_evidence(race, best)) is not None:
        # It asks the fine-tuning itself. Probe and records beside it made the advice worse, because they know little of
        # this very target (`examples/benchmarks/scratch_advice.py`).
        return decide(best, ties, [ran])
    scores = target.records.scores()
    others = scores[scores.index.get_level_values("target") != target.name]
    return decide(best, ties, [_probe(target, best), records_evidence(others, best)])


def _probe(target: Target, best: str) -> Evidence | None:
    """The linear probe of the ranking, where it has one, beside that of random features."""
    probes = (each for each in target.judged if isinstance(each, FeatureScore) and each.score == "linear_probe")
    for probe in probes:
        found = target.columns[probe.name].get(best)
        if isinstance(found, Estimate):
            try:
                random = [probe.measure(target.features(None, draw)).replicates for draw in range(DRAWS)]
            except (PGEError, ValueError):  # a module may have parts that nothing re-initialises
                return None
            return probe_evidence(found.replicates, random)
    return None

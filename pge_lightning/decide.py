"""Decide: the source to start from or none, by what is known of starting from scratch, and how sure that is."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from rich.console import Group
from rich.text import Text
from scipy import stats
from scipy.special import expit, logit

from pge_lightning.record import SCRATCH

if TYPE_CHECKING:
    from pge_lightning.race import Race

__all__ = ["Decision", "Evidence", "decide", "probe_evidence", "race_evidence", "records_evidence"]

# Below a word's bound the next one holds.
WORDS = ((0.95, "very likely"), (0.75, "likely"), (0.6, "rather likely"), (0.0, "about even"))
UNKNOWN = "not known"
# The numbers below are from `examples/benchmarks/scratch_advice.py`. Better features than random ones hardly tell
# whether fine-tuning gains by them.
PROBE_BOUNDS = (-0.5, 0.3)
# A short race is no whole fine-tuning, however clear its end.
RACE_BOUNDS = (-2.5, 2.5)
# By the loss it flatters sources, whose head start shrinks later.
HEAD_START = 0.4
# Past targets that the share of all sources counts for, beside those of the source itself, which say little more.
SHARED_TARGETS = 20.0


@dataclass(frozen=True)
class Evidence:
    """What one look at source and scratch says.

    Args:
        log_odds: Of the source being better than scratch, beside those of other looks; positive speaks for the source.
        text: The same with its numbers, in one line.
    """

    log_odds: float
    text: str


@dataclass(frozen=True)
class Decision:
    """What fine-tuning should start from.

    Args:
        source: Name of the source; ``None`` to start from scratch, with the model as it is.
        best: The best source, whether it is advised or not.
        ties: Sources that the ranking cannot tell from the best one.
        confidence: Probability that the advice is right, which is to say that the best source is better than scratch,
            or is not; in [0.5, 1] where there is evidence, and 0.5 where there is none.
        words: The confidence in words.
        reasons: The evidence with its numbers, one line each.
    """

    source: str | None
    best: str
    ties: tuple[str, ...]
    confidence: float
    words: str
    reasons: tuple[str, ...]

    def __str__(self) -> str:
        return "\n".join([self._advice(), *(f"- {reason}" for reason in self.reasons)])

    def __rich__(self) -> Group:
        """The advice, and below it why."""
        return Group(Text(self._advice(), style="bold"), *(Text(f"- {reason}") for reason in self.reasons))

    def _advice(self) -> str:
        name = f"Start from '{self.best}'" if self.source is not None else f"Start from scratch, not from '{self.best}'"
        sure = self.words if self.words == UNKNOWN else f"{self.words}, {self.confidence:.2f}"
        return f"{name} ({'whether it beats scratch: ' if self.words == UNKNOWN else ''}{sure})."


def decide(best: str, ties: Sequence[str] = (), evidence: Iterable[Evidence | None] = ()) -> Decision:
    """Weigh the best source against starting from scratch.

    The log-odds of independent looks add up, from even odds. Without any there is no telling, and the best source is
    advised, with words that say so.

    Args:
        best: The best source of the ranking or of a race.
        ties: Sources that cannot be told from it.
        evidence: What there is; ``None`` entries are passed over.

    Returns:
        The advice.

    Example:
        >>> print(decide("mnist", evidence=[Evidence(-1.2, "records: scratch won on 7 of 10 targets")]))
        Start from scratch, not from 'mnist' (likely, 0.77).
        - records: scratch won on 7 of 10 targets
        >>> decide("mnist").words
        'not known'
    """
    found = [entry for entry in evidence if entry is not None]
    tied = (f"tied with {', '.join(ties)}",) if ties else ()
    if not found:
        nothing = "nothing is known of starting from scratch: no records, no race, no linear probe"
        return Decision(best, best, tuple(ties), 0.5, UNKNOWN, (nothing, *tied))
    chance = float(expit(math.fsum(entry.log_odds for entry in found)))
    confidence = max(chance, 1 - chance)
    words = next(word for bound, word in WORDS if confidence >= bound)
    reasons = tuple(entry.text for entry in found)
    return Decision(best if chance >= 0.5 else None, best, tuple(ties), confidence, words, (*reasons, *tied))


def probe_evidence(source: ArrayLike, scratch: ArrayLike, held_to_trained: float = 0.5) -> Evidence | None:
    """What a linear probe says: features that are no better than those of a random encoder are no help.

    Args:
        source: Accuracy on each fold with the source's features, as fractions, ``[folds]``.
        scratch: The same with re-initialised encoders, ``[folds]`` or ``[draws, folds]``.
        held_to_trained: Samples in a fold, per sample that its classifier was fitted to: 0.5 for three folds, however
            often they are drawn.

    Returns:
        The evidence, bounded on both sides; ``None`` for a single fold.

    Raises:
        ValueError: If the numbers of folds differ.

    Example:
        >>> probe_evidence([0.5, 0.4, 0.6], [0.3, 0.3, 0.4]).text
        'linear probe: 50.0 % with its features, 33.3 % with random ones'
    """
    own, others = np.asarray(source, dtype=np.float64), np.atleast_2d(np.asarray(scratch, dtype=np.float64))
    if own.ndim != 1 or others.shape[1:] != own.shape:
        raise ValueError(
            f"Expected as many folds of scratch as of the source, but got shapes {others.shape} and {own.shape}. "
            "Probe both on the same folds."
        )
    if len(own) < 2:
        return None
    random = others.mean(axis=0)
    text = f"linear probe: {own.mean():.1%} with its features, {random.mean():.1%} with random ones"
    return Evidence(_paired_log_odds(own - random, held_to_trained, PROBE_BOUNDS), text.replace("%", " %"))


def records_evidence(scores: pd.DataFrame, source: str) -> Evidence | None:
    r"""What past fine-tunings say: how often, and by how much, scratch was beaten on other targets.

    The share of targets on which the source was better is shrunk towards the share over all sources, and that towards
    one half; a target counts once there, because one value of scratch is compared with all its sources. What this says
    is never surer than its past: each target is foretold from the others, and the share of right answers is the bound;
    records that would have been wrong as often as right say nothing.

    Args:
        scores: Past results, higher is better, ``[conditions, sources]`` with a column ``"scratch"``, as
            :meth:`~pge_lightning.records.Records.scores` gives them; without those of this target.
        source: Name of the source.

    Returns:
        The evidence; ``None`` where no target was tried from a source and from scratch.

    Example:
        >>> past = pd.DataFrame({"a": [0.9, 0.8], "b": [0.9, 0.8], "scratch": [0.8, 0.7]}, index=["x", "y"])
        >>> print(records_evidence(past, "a").text.replace("; ", "\n"))
        records: 'a' beat scratch on 2 of 2 other targets, by 0.1 in the median
        all sources on 100 %
        right so far: 75 %
    """
    if SCRATCH not in scores:
        return None
    gains = scores.drop(columns=SCRATCH).sub(scores[SCRATCH], axis=0).dropna(how="all")
    if gains.empty:
        return None
    wins = _wins(gains)
    own = wins[source].dropna() if source in wins else pd.Series(dtype=float)
    right = _right_so_far(wins)
    bound = max(0.0, float(logit(right)))
    odds = float(np.clip(logit(_chances(wins).get(source, _shared(wins))), -bound, bound))
    overall = f"all sources on {wins.mean(axis=1).mean():.0%}; right so far: {right:.0%}".replace("%", " %")
    if own.empty:
        return Evidence(odds, f"records: scratch was never tried beside '{source}'; {overall}")
    gain = float(gains[source].dropna().median())
    text = f"records: '{source}' beat scratch on {own.sum():g} of {len(own)} other targets, by {gain:.3g} in the median"
    return Evidence(odds, f"{text}; {overall}")


def race_evidence(race: "Race", source: str) -> Evidence | None:
    """What a short race says: held-out accuracies, or losses, of the source and of scratch, after as many steps.

    Args:
        race: The race.
        source: Name of the source.

    Returns:
        The evidence, bounded on both sides; ``None`` where the source did not take part, failed, or there is one split.
    """
    lane = race.lane(source)
    if lane is None or len(lane.advantages) < 2:
        return None
    ahead, mean = sum(value > 0 for value in lane.advantages), fmean(lane.advantages)
    odds = _paired_log_odds(np.asarray(lane.advantages), race.held_to_trained, RACE_BOUNDS)
    if lane.accuracies:
        what = f"accuracy was {abs(mean):.1%} {'higher' if mean >= 0 else 'lower'} than".replace("%", " %")
    else:
        what, odds = f"loss was {abs(mean):.3g} {'lower' if mean >= 0 else 'higher'} than", odds - HEAD_START
    text = f"race: after {lane.steps} steps its held-out {what} that of scratch"
    return Evidence(odds, f"{text}; better on {ahead} of {len(lane.advantages)} splits")


def _wins(gains: pd.DataFrame) -> pd.DataFrame:
    """1 where the source was better, 0.5 where both gave the same, 0 where it was worse, nan where it was not tried."""
    return gains.gt(0).add(gains.ge(0).astype(float)).div(2).where(gains.notna())


def _shared(wins: pd.DataFrame) -> float:
    """The chance of any source: the mean share of targets, which count once each, shrunk towards one half."""
    shares = wins.mean(axis=1)
    return (float(shares.sum()) + 1) / (len(shares) + 2)


def _chances(wins: pd.DataFrame) -> pd.Series:
    """The chance of each source: its own share of targets, shrunk towards that of all."""
    return (wins.sum() + SHARED_TARGETS * _shared(wins)) / (wins.count() + SHARED_TARGETS)


def _right_so_far(wins: pd.DataFrame) -> float:
    """The share of right answers where each target is foretold from the others, shrunk towards one half."""
    targets = wins.index.get_level_values("target" if "target" in wins.index.names else 0)
    shares = []
    for target in targets.unique() if targets.nunique() > 1 else ():
        here, others = wins[targets == target], wins[targets != target]
        foretold = np.sign(_chances(others) - 0.5)
        shares.append(float(np.nanmean((here - 0.5) * foretold + 0.5)))
    return (math.fsum(shares) + 1) / (len(shares) + 2)


def _paired_log_odds(differences: np.ndarray, held_to_trained: float, bounds: tuple[float, float]) -> float:
    """Log-odds that a mean of paired differences is positive, by a t-test for splits that share training samples."""
    # Nadeau and Bengio 2003, section 3.2: the variance of the mean is (1/n + held/trained) that of one difference.
    n, mean = len(differences), float(differences.mean())
    error = math.sqrt((1 / n + held_to_trained) * float(differences.var(ddof=1)))
    if error == 0:
        return 0.0 if mean == 0 else bounds[mean > 0]
    with np.errstate(divide="ignore"):
        return float(np.clip(logit(stats.t.cdf(mean / error, n - 1)), *bounds))

"""The benchmark of families: votes, of which history counts as far as it is not noise."""

import sys
from importlib import import_module
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

sys.path.append(str(Path(__file__).parents[1] / "examples" / "benchmarks"))
families = import_module("families")
history = import_module("history")

SOURCES = ["a", "b", "c"]
TRUTH = {"t": (0.1, 0.2, 0.3), "u": (0.3, 0.2, 0.4), "v": (0.2, 0.1, 0.5)}


@pytest.fixture
def results(tmp_path):
    """An evaluation of three targets: the gap is right, history is half noise, other members say nothing."""
    truth = [
        (target, name, value) for target, values in TRUTH.items() for name, value in zip(SOURCES, values, strict=True)
    ]
    pd.DataFrame(truth, columns=["target", "source", "mean"]).to_csv(tmp_path / "truth.csv", index=False)
    error = np.std([-1.0, 0.0, 1.0]) / np.sqrt(2)
    rows = [
        (target, member, name, {"gap": value, "standing": place - 1.0}.get(member, 0.0), error)
        for target, values in TRUTH.items()
        for member in families.MEMBERS
        for place, (name, value) in enumerate(zip(SOURCES, values, strict=True))
    ]
    columns = ["target", "estimator", "source", "score", "standard_error"]
    pd.DataFrame(rows, columns=columns).to_csv(tmp_path / "rankings.csv", index=False)
    return tmp_path


def test_history_votes_by_its_share_and_all_others_in_full(results):
    votes, gave = families.votes(results)[0]
    assert gave.tolist() == list(TRUTH["t"])
    spread = np.sqrt(2 / 3)
    by_member = dict(zip(families.MEMBERS, votes.T, strict=True))
    assert by_member["standing"] == pytest.approx(np.array([-0.5, 0, 0.5]) / spread)
    assert by_member["gap"] == pytest.approx(np.array([-1, 0, 1]) / spread)
    assert not by_member["log_me"].any()


def test_what_leaves_no_order_counts_as_chance(results):
    votes = [
        (scores * np.array([name == "log_me" for name in families.MEMBERS]), gave)
        for scores, gave in families.votes(results)
    ]
    assert families.measured(families.DEFAULT, votes)[0] == 0


def test_history_is_of_other_targets_and_shrinks_with_their_number(results):
    truth = pd.DataFrame(TRUTH, SOURCES).T
    _, one = history.shares(truth, "t", 1, draw=0)
    vote, both = history.shares(truth, "t", None, draw=0)
    assert one["hedged"] == 0 < both["hedged"] < 1 == both["full vote"]
    assert vote["c"] > max(vote["a"], vote["b"])
    table = history.measured(results, None, draws=1)
    assert table.at["no history", "tau"] == 1  # the gap is right everywhere
    assert 0 <= table.at["hedged", "tau"] <= 1

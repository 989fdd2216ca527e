"""The benchmarks' pictures: what is drawn is what the tables say."""

import math
import sys
from importlib import import_module
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.image import imread

sys.path.append(str(Path(__file__).parents[1] / "examples" / "benchmarks"))
families, pictures = import_module("families"), import_module("pictures")

ENDS = ["weighted_tau", "weighted_tau_low", "weighted_tau_high", "regret", "regret_low", "regret_high"]


def family(shift, **others):
    """Means of four estimators on five targets."""
    rows = {
        "gap": ["opens no source", 5, 0.5, 0.3, 0.7, 1.0, 0.5, 1.5],
        "log_me": ["opens all sources", 5, 0.4, 0.1, 0.5, 2.0, 1.5, 3.5],
        "knn": ["opens all sources", 5, 0.2, 0.0, 0.4, 3.0, 2.0, 4.0],
        "random": ["baseline", 5, 0.0, np.nan, np.nan, 4.0, np.nan, np.nan],
    }
    table = pd.DataFrame.from_dict(rows | others, orient="index", columns=["kind", "targets", *ENDS])
    table[ENDS] += shift
    return table.rename_axis("estimator")


@pytest.fixture
def folders(tmp_path):
    """Two finished evaluations; the second has an estimator more, and one that left a target out."""
    extra = {"only_here": ["opens no source", 5, *[0.5] * 6], "h_score": ["opens all sources", 4, *[0.5] * 6]}
    for name, table in {"one": family(0.0), "two": family(0.2, **extra)}.items():
        (tmp_path / name).mkdir()
        table.to_csv(tmp_path / name / "estimators.csv")
    return [tmp_path / "one", tmp_path / "two"]


EFFICIENCY = pd.DataFrame(
    [
        (name, sources, samples, base + each * sources * samples / 200)
        for name, base, each in (("gap", 5.0, 0.004), ("LogME", 0.1, 0.07), ("nearest neighbours", 0.01, 0.02))
        for samples in (200, 1000)
        for sources in (10, 100, 1000)
    ],
    columns=["estimator", "sources", "samples", "s"],
)
# Kendall's tau of each target: its number tenths, and more by form and condition.
STABILITY = pd.DataFrame([
    {"form": form, "target": f"t{target}", "condition": text, "kendall": value, "weighted tau": value - 0.1}
    for form, worth in (("gap", 0.2), ("plain gap", 0.0))
    for target in (1, 2, 3)
    for text, more in {
        "restarts of seed 1": 9.0,
        "other target samples (2)": 9.0,
        "2 restarts": 0.0,
        "32 restarts": 0.05,
        "15 steps": 0.1,
        "batches of 32": 0.2,
    }.items()
    for value in [target / 10 + worth + more]
])


def check_file(path, figure):
    pixels = imread(path)[:, :, :3]
    assert pixels.shape[:2] == pytest.approx([150 * inches for inches in figure.get_size_inches()[::-1]], abs=1)
    for rim in (pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]):
        assert (rim == 1).all()


def curves(axes):
    """Label to the points of a curve; those of error bars from their containers."""
    bars = {bar.get_label(): bar[0].get_xydata() for bar in axes.containers}
    return bars or {line.get_label(): line.get_xydata() for line in axes.lines}


class TestMeanOver:
    def test_means_and_intervals_of_what_all_families_have(self, folders):
        mean = families.mean_over([families.read(folder) for folder in folders])
        assert list(mean.index) == ["gap", "log_me", "knn", "random"]
        assert list(mean["weighted_tau"]) == pytest.approx([0.6, 0.5, 0.3, 0.1])
        half = math.sqrt(0.2**2 + 0.2**2) / 2
        assert list(mean.loc["gap", ENDS[:3]]) == pytest.approx([0.6, 0.6 - half, 0.6 + half])
        assert mean.loc["log_me", "regret_low"] == pytest.approx((1.5 + 3.5) / 2 + 0.1 - math.sqrt(2) / 2)

    def test_one_family_is_its_own_mean(self, folders):
        only = families.read(folders[0])
        mean = families.mean_over([only]).loc[only.index]
        assert mean[ENDS].to_numpy() == pytest.approx(only[ENDS].to_numpy(), nan_ok=True)

    def test_interval_is_that_of_the_mean_of_independent_draws(self):
        draws = np.random.default_rng(0).normal([0.3, 0.5], [0.1, 0.2], size=(100_000, 2))
        ends = np.quantile(draws, [0.025, 0.975], axis=0)
        tables = [family(0.0) for _ in range(2)]
        for table, value, (low, high) in zip(tables, (0.3, 0.5), ends.T, strict=True):
            table.loc["gap", ENDS[:3]] = [value, low, high]
        found = families.mean_over(tables).loc["gap", ENDS[1:3]]
        assert list(found) == pytest.approx(list(np.quantile(draws.mean(axis=1), [0.025, 0.975])), abs=0.005)


class TestCost:
    @pytest.fixture
    def means(self, folders):
        return families.mean_over([families.read(folder) for folder in folders])

    def test_points_front_and_note(self, means, tmp_path):
        seconds = pictures.seconds_of(EFFICIENCY, sources=100, samples=200)
        figure = pictures.plot_cost(tmp_path / "cost.png", means, seconds, "title")
        check_file(tmp_path / "cost.png", figure)
        axes = figure.axes[0]
        drawn = curves(axes)
        assert drawn["opens no source"] == pytest.approx(np.array([[5.4, 1.1]]))
        assert drawn["opens all sources"] == pytest.approx(np.array([[7.1, 2.1], [2.01, 3.1]]))
        assert drawn["Pareto front"][:2] == pytest.approx(np.array([[2.01, 3.1], [5.4, 1.1]]))
        assert {text.get_text() for text in axes.texts} - {""} == {"gap", "LogME", "nearest neighbours"}
        assert figure.get_supxlabel() == "Cost not measured: random."
        assert "Pareto front" in [text.get_text() for text in figure.legends[0].get_texts()]

    def test_the_front_leaves_out_who_is_beaten_and_ties(self):
        points = pd.DataFrame({"seconds": [1, 2, 3, 3, 4], "regret": [5.0, 6, 2, 3, 2]}, index=list("abcde"))
        assert list(pictures.front(points).index) == ["a", "c"]

    def test_names_do_not_stand_on_each_other(self, tmp_path):
        random = np.random.default_rng(0)
        names = [f"estimator {number}" for number in range(20)]
        means = pd.DataFrame({"kind": "opens no source", "regret": 1 + random.random(20)}, index=names)
        figure = pictures.plot_cost(tmp_path / "x.png", means, pd.Series(np.exp(random.random(20)), names), "crowded")
        boxes = [text.get_window_extent() for text in figure.axes[0].texts if text.get_text()]
        assert len(boxes) == 20
        assert not any(one.overlaps(other) for one, other in combinations(boxes, 2))

    def test_a_cost_that_was_not_measured_is_refused(self, means, tmp_path):
        with pytest.raises(SystemExit, match="an estimator that was judged, but got that of another"):
            pictures.plot_cost(tmp_path / "x.png", means, pd.Series({"another": 1.0}), "title")
        with pytest.raises(SystemExit, match=r"7 sources and 200 samples.*10 and 200.*--sources"):
            pictures.seconds_of(EFFICIENCY, sources=7, samples=200)


def test_sources_are_curves_of_what_was_measured(tmp_path):
    figure = pictures.plot_sources(tmp_path / "sources.png", EFFICIENCY)
    check_file(tmp_path / "sources.png", figure)
    assert [axes.get_title() for axes in figure.axes] == ["200 target samples", "1,000 target samples"]
    for axes, samples in zip(figure.axes, (200, 1000), strict=True):
        drawn = curves(axes)
        assert list(drawn) == ["gap", "LogME", "nearest neighbours"]
        for name, points in drawn.items():
            rows = EFFICIENCY[(EFFICIENCY["estimator"] == name) & (EFFICIENCY["samples"] == samples)]
            assert points == pytest.approx(rows[["sources", "s"]].to_numpy())
        assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
        assert [label.get_text() for label in axes.get_xticklabels()] == ["10", "100", "1,000"]


class TestStability:
    def test_curves_are_means_over_targets_with_their_errors(self, tmp_path):
        figure = pictures.plot_stability(tmp_path / "stability.png", STABILITY)
        check_file(tmp_path / "stability.png", figure)
        assert [axes.get_xlabel() for axes in figure.axes[::2]] == ["restarts", "steps", "samples per batch"]
        kendall, tau = figure.axes[:2]
        for axes, less in ((kendall, 0.0), (tau, 0.1)):
            drawn = curves(axes)
            assert drawn["gap"] == pytest.approx(np.array([[2, 0.4 - less], [32, 0.45 - less]]))
            assert drawn["plain gap"][:, 1] == pytest.approx([0.2 - less, 0.25 - less])
            assert drawn["plain gap"][:, 0] == pytest.approx([2, 32], rel=0.05)
            assert [label.get_text() for label in axes.get_xticklabels()] == ["2", "32"]
        low, high = kendall.containers[0][2][0].get_segments()[0][:, 1]
        assert (high - low) / 2 == pytest.approx(0.1 / math.sqrt(3))

    def test_without_numbers_there_is_nothing_to_draw(self, tmp_path):
        with pytest.raises(SystemExit, match="such as '16 restarts', but got restarts of seed 1"):
            pictures.plot_stability(tmp_path / "x.png", STABILITY[STABILITY["condition"] == "restarts of seed 1"])


class TestMain:
    def run(self, monkeypatch, *arguments):
        monkeypatch.setattr(sys, "argv", ["pictures.py", *map(str, arguments)])
        pictures.main()

    def test_draws_what_is_given(self, folders, tmp_path, monkeypatch):
        EFFICIENCY[EFFICIENCY["sources"] < 1000].to_csv(tmp_path / "few.csv")
        EFFICIENCY[EFFICIENCY["sources"] == 1000].to_csv(tmp_path / "many.csv")
        STABILITY.to_csv(tmp_path / "stability.csv")
        tables = {
            "--families": folders,
            "--stability": [tmp_path / "stability.csv"],
            "--efficiency": [tmp_path / "few.csv", tmp_path / "many.csv"],
        }
        drawn = {
            ("--families",): {"estimators.png"},
            ("--stability",): {"stability.png"},
            ("--efficiency",): {"sources.png"},
            tuple(tables): {"estimators.png", "stability.png", "sources.png", "cost.png"},
        }
        for given, expected in drawn.items():
            out = tmp_path / "-".join(given)
            self.run(monkeypatch, *(each for name in given for each in (name, *tables[name])), "--out", out)
            assert {path.name for path in out.iterdir()} == expected
            assert all(imread(path).shape[1] == 1350 for path in out.iterdir())

    def test_nothing_given_is_an_error_in_words(self, monkeypatch, capsys):
        with pytest.raises(SystemExit):
            self.run(monkeypatch)
        assert "Expected --families, --stability or --efficiency, but got none" in capsys.readouterr().err

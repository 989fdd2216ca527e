"""Pictures of an evaluation: what is drawn is what the tables say."""

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex
from matplotlib.image import imread

from pge_lightning.app.plot import DPI, KINDS, called, kind_of, plot_estimators, plot_target, plot_targets
from pge_lightning.estimators import (
    Combination,
    FactEstimator,
    FeatureScore,
    GapEstimator,
    Pipeline,
    RandomOrder,
    StandingEstimator,
    default_estimator,
)


def check_file(path, figure):
    """A PNG as large as the figure says, with something on it and a white rim: nothing is cut off."""
    pixels = imread(path)[:, :, :3]
    assert pixels.shape[:2] == pytest.approx([DPI * inches for inches in figure.get_size_inches()[::-1]], abs=1)
    assert pixels.std() > 0.05
    for rim in (pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]):
        assert (rim == 1).all()


def crossed(count):
    """Truth and ranking of so many data sets with long names, each a source for every other."""
    names = [f"a_data_set_with_a_long_name_{number:02}" for number in range(count)]
    rows = [
        {"target": target, "source": source, "mean": 0.5 + 0.01 * j, "score": -0.01 * j, "reason": ""}
        for target in names
        for j, source in enumerate([*names, "scratch"])
        if source != target
    ]
    frame = pd.DataFrame(rows)
    return names, frame.drop(columns="score"), frame[frame["source"] != "scratch"].drop(columns="mean")


ESTIMATORS = pd.DataFrame(
    [
        ("log_me", "opens all sources", 0.3, 0.1, 0.5, 1.0, 0.4, 2.0),
        ("default", "opens some sources", 0.6, 0.4, 0.8, 0.0, 0.0, 1.2),
        ("gap", "opens no source", 0.5, 0.3, 0.7, 0.5, 0.1, 14.0),
        ("random", "baseline", 0.0, np.nan, np.nan, 5.0, np.nan, np.nan),
        ("silent", "opens no source", *[np.nan] * 6),
    ],
    columns=[
        "estimator",
        "kind",
        *(f"{measure}{end}" for measure in ("weighted_tau", "regret") for end in ("", "_low", "_high")),
    ],
)


class TestPlotEstimators:
    def test_rows_are_ordered_by_weighted_tau_and_named_in_print(self, tmp_path):
        figure = plot_estimators(tmp_path / "estimators.png", ESTIMATORS)
        labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
        assert labels == ["silent", "random", "LogME", "gap", "default"]
        check_file(tmp_path / "estimators.png", figure)

    def test_dots_and_intervals_are_those_of_the_table(self, tmp_path):
        figure = plot_estimators(tmp_path / "estimators.png", ESTIMATORS)
        order = ["silent", "random", "log_me", "gap", "default"]
        for axes, measure in zip(figure.axes, ("weighted_tau", "regret"), strict=True):
            dots = {line.get_label(): line for line in axes.lines if line.get_label() in KINDS}
            assert list(dots) == list(KINDS)
            segments = [segment for lines in axes.collections for segment in lines.get_segments() if len(segment)]
            ends = {segment[0, 1]: segment[:, 0] for segment in segments}
            for row in ESTIMATORS.to_dict("records"):
                line, place = dots[row["kind"]], order.index(row["estimator"])
                assert (to_hex(line.get_color()).upper(), line.get_marker()) == KINDS[row["kind"]]
                assert dict(zip(line.get_ydata(), line.get_xdata(), strict=True))[place] == pytest.approx(
                    row[measure], nan_ok=True
                )
                expected = [row[f"{measure}_low"], row[f"{measure}_high"]]
                assert list(ends.get(place, [np.nan] * 2)) == pytest.approx(expected, nan_ok=True)

    def test_everything_is_in_sight(self, tmp_path):
        left, right = plot_estimators(tmp_path / "estimators.png", ESTIMATORS).axes
        assert left.get_ylim()[0] < 0 < len(ESTIMATORS) - 1 < left.get_ylim()[1]
        assert right.get_xlim()[0] < 0 < 14 < right.get_xlim()[1]
        assert [float(label.get_text()) for label in right.get_xticklabels()] == pytest.approx(right.get_xticks())

    def test_legend_names_the_kinds_that_are_there(self, tmp_path):
        figure = plot_estimators(tmp_path / "estimators.png", ESTIMATORS[ESTIMATORS["kind"] != "baseline"])
        assert [text.get_text() for text in figure.legends[0].get_texts()] == list(KINDS)[:3]

    def test_without_intervals_there_are_dots(self, tmp_path):
        ends = [name for name in ESTIMATORS if name.endswith(("_low", "_high"))]
        figure = plot_estimators(tmp_path / "estimators.png", ESTIMATORS.assign(**dict.fromkeys(ends, np.nan)))
        check_file(tmp_path / "estimators.png", figure)


class TestPlotTargets:
    @pytest.mark.parametrize("count", [3, 22])
    def test_maps_are_standardised_rows_and_nothing_is_cut_off(self, count, tmp_path):
        names, truth, ranking = crossed(count)
        figure = plot_targets(tmp_path / "ranking.png", truth, ranking, "gap")
        check_file(tmp_path / "ranking.png", figure)
        left, right, _ = figure.axes
        said, gave = (axes.images[0].get_array().filled(np.nan) for axes in (left, right))
        assert np.isnan(np.diag(said)).all()
        assert np.nanmean(said, axis=1) == pytest.approx(0)
        assert np.nanstd(gave, axis=1, ddof=1) == pytest.approx(1)
        assert said == pytest.approx(-gave, nan_ok=True)  # the tables say the opposite of each other
        assert [label.get_text() for label in right.get_xticklabels()] == names
        assert [label.get_text() for label in left.get_yticklabels()] == names

    def test_stars_mark_the_best_source_of_a_row(self, tmp_path):
        _, truth, ranking = crossed(4)
        left, right, _ = plot_targets(tmp_path / "ranking.png", truth, ranking, "gap").axes
        assert [line.get_xdata()[0] for line in left.lines] == [1, 0, 0, 0]
        assert [line.get_xdata()[0] for line in right.lines] == [3, 3, 3, 2]


class TestPlotTarget:
    def test_sources_stand_in_the_order_of_the_ranking(self, tmp_path):
        sources = ["a", "b", "c"]
        truth = pd.DataFrame({
            "target": "t",
            "source": [*sources, "scratch"],
            "mean": [0.7, 0.8, 0.6, 0.5],
            "reason": "",
        })
        ranking = pd.DataFrame({"source": sources, "estimate": [0.2, 0.1, 0.3], "score": [-0.2, -0.1, -0.3]})
        ranking = ranking.assign(low=ranking["estimate"] - 0.05, high=ranking["estimate"] + 0.1)
        figure = plot_target(tmp_path / "ranking.png", truth.assign(standard_deviation=0.01), ranking, "gap")
        check_file(tmp_path / "ranking.png", figure)
        left, right = figure.axes
        assert [label.get_text() for label in left.get_yticklabels()] == ["c", "a", "b"]
        dots = [line.get_xdata()[0] for line in right.lines if line.get_marker() in {"o", "D"}]
        assert dots == pytest.approx([0.6, 0.7, 0.8])
        assert right.get_legend().get_texts()[0].get_text() == "from scratch"


class TestKindOf:
    @pytest.mark.parametrize(
        ("estimator", "kind"),
        [
            (GapEstimator("default"), "opens no source"),
            (StandingEstimator(), "opens no source"),
            (FeatureScore("log_me"), "opens all sources"),
            (Combination({"gap": GapEstimator("default"), "knn": FeatureScore("knn")}), "opens all sources"),
            (default_estimator(), "opens some sources"),
            (Pipeline(FeatureScore("knn"), FeatureScore("log_me")), "opens all sources"),
            (Pipeline(StandingEstimator(), GapEstimator("default")), "opens no source"),
            (FactEstimator("source_classes"), "baseline"),
            (RandomOrder(), "baseline"),
        ],
    )
    def test_by_what_it_needs(self, estimator, kind):
        assert kind_of(estimator) == kind
        assert kind in KINDS


def test_names_in_print():
    assert [called(name) for name in ("log_me", "LogME", "gap_and_history", "gap, first ranking")] == [
        "LogME",
        "LogME",
        "gap and history",
        "gap, first ranking",
    ]

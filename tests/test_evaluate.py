"""Evaluations on scikit-learn's digits: real trainings, real files, in small."""

import itertools
import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hydra import compose, initialize_config_module
from hydra.utils import instantiate
from rich.progress import Progress
from scipy import stats

from evaluate_helpers import SETS, config, read, run_until_killed, sabotage
from pge_lightning.app import TaskError, run
from pge_lightning.app.cells import Cell
from pge_lightning.app.evaluate import evaluate
from pge_lightning.app.judge import judge, overall, seed_agreement, truth_table
from pge_lightning.app.quality import agreement, assess, expected_at_random, spearman, weighted_tau
from pge_lightning.app.study import settings_of, start_study
from pge_lightning.app.work import Worker
from pge_lightning.data import MlxtendMnist, SklearnDigits
from pge_lightning.errors import PGEError
from pge_lightning.estimators import GapEstimator
from pge_lightning.estimators.feature_score import SCORES
from pge_lightning.library import Library
from pge_lightning.record import SCRATCH

TABLES = ["cells.csv", "truth.csv", "rankings.csv", "results.csv", "comparisons.csv", "estimators.csv", "summary.md"]
KEPT = [*TABLES, "ranking.png", "estimators.png"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """One target, two sources, two estimators; with what `pge` returns."""
    folder = tmp_path_factory.mktemp("finished")
    estimators = "+evaluate.estimators={gap:{},literature:{probe:published,selector:{kind:published},data:{labels:80}}}"
    return folder, run(config(folder, estimators)), estimators


@pytest.fixture(scope="module")
def crossed(tmp_path_factory):
    """Three sets, each a source and a target; one seed."""
    folder = tmp_path_factory.mktemp("crossed")
    return folder, evaluate(config(folder, "evaluate.seeds=[0]", sources=SETS, targets=SETS))


class TestQuality:
    def test_equals_scipy(self):
        random = np.random.default_rng(0)
        score, truth = random.normal(size=(2, 9))
        assert weighted_tau(score, truth) == stats.weightedtau(score, truth).statistic
        assert spearman(score, truth) == pytest.approx(stats.spearmanr(score, truth).statistic)

    def test_equals_values_by_hand(self):
        # Ranks by truth are 2, 1, 3, 4; those by score 1, 2, 3, 4: squared differences sum to 2.
        quality = assess([4, 3, 2, 1], [0.7, 0.8, 0.6, 0.5])
        assert quality.spearman == pytest.approx(1 - 6 * 2 / (4 * 15))
        assert quality.regret == pytest.approx(10)
        assert (quality.top_1, quality.rank) == (0, 2)

    def test_weighted_tau_by_hand(self):
        # Hyperbolic weights 1/(r+1) + 1/(s+1) of the three pairs are 3/2, 4/3 and 5/6; the first is discordant,
        # by the ranks of either side.
        assert weighted_tau([3, 2, 1], [2, 3, 1]) == pytest.approx((-3 / 2 + 4 / 3 + 5 / 6) / (3 / 2 + 4 / 3 + 5 / 6))

    def test_takes_the_mean_over_equal_scores(self):
        quality = assess([2, 2, 1], [0.9, 0.7, 0.8])
        assert (quality.regret, quality.top_1, quality.rank) == (pytest.approx(10), 0.5, 2)

    def test_random_order_equals_the_mean_over_all_orders(self):
        truth = [0.9, 0.7, 0.7, 0.4]
        orders = [assess(score, truth) for score in itertools.permutations(range(4))]
        expected = expected_at_random(truth)
        for field in ("weighted_tau", "spearman", "regret", "top_1", "rank"):
            mean = np.mean([getattr(quality, field) for quality in orders])
            assert getattr(expected, field) == pytest.approx(mean, abs=1e-12), field

    def test_is_nan_where_one_side_is_constant(self):
        assert math.isnan(weighted_tau([1, 1, 1], [1, 2, 3]))
        assert math.isnan(spearman([1, 2, 3], [1, 1, 1]))

    @pytest.mark.parametrize(
        ("score", "truth", "message"),
        [
            ([1.0], [1.0], "at least two sources"),
            ([1.0, 2.0], [1.0, 2.0, 3.0], "one score and one truth"),
            ([1.0, math.nan], [1.0, 2.0], "finite"),
        ],
    )
    def test_refuses(self, score, truth, message):
        with pytest.raises(ValueError, match=message):
            assess(score, truth)

    def test_agreement_of_seeds(self):
        assert agreement([[0.1, 0.9], [0.5, 0.5], [0.9, 0.1]]) == -1
        assert math.isnan(agreement([[0.1], [0.2]]))


class TestJudge:
    VALUES = (("a", 0.9), ("b", 0.8), ("c", 0.5))
    CELLS = (
        *(Cell("t", source, seed, "", value) for source, value in VALUES for seed in (0, 1)),
        Cell("t", "scratch", 0, "", 0.6),
        Cell("t", "d", 0, "", reason="went wrong"),
    )

    def estimates(self, scores):
        rows = [("t", "gap", source, score, "") for source, score in scores.items()]
        return pd.DataFrame(rows, columns=["target", "estimator", "source", "score", "reason"])

    def test_truth_holds_means_and_failures(self):
        truth = truth_table(self.CELLS).set_index("source")
        assert list(truth.index) == ["a", "b", "scratch", "c", "d"]
        assert truth.loc["a", "mean"] == pytest.approx(0.9)
        assert (truth.loc["a", "seeds"], truth.loc["d", "failed"], truth.loc["d", "reason"]) == (2, 1, "went wrong")

    def test_scratch_counts_in_the_gain_only(self):
        scores = {"a": -2.0, "b": -1.0, "c": -3.0, "d": 0.0}
        row = judge(truth_table(self.CELLS), self.estimates(scores)).iloc[0]
        assert (row.choice, row.sources) == ("b", 3)
        assert (row.regret, row.gain, row["rank"]) == (pytest.approx(10), pytest.approx(20), 2)
        assert row.weighted_tau == pytest.approx(stats.weightedtau([-2, -1, -3], [0.9, 0.8, 0.5]).statistic)

    def test_a_source_without_score_stands_last(self):
        row = judge(truth_table(self.CELLS), self.estimates({"a": math.nan, "b": -1.0, "c": -3.0})).iloc[0]
        assert (row.choice, row.sources, row["rank"]) == ("b", 2, 2)
        assert row.spearman == pytest.approx(stats.spearmanr([-4, -1, -3], [0.9, 0.8, 0.5]).statistic)

    def test_precision_of_advice_not_to_transfer(self):
        values = {"worse": (0.9, 0.8), "equal": (0.7, 0.7), "better": (0.6, 0.8), "without": (0.5, None)}
        cells = [Cell(target, "scratch", 0, "", scratch) for target, (scratch, _) in values.items() if scratch]
        for target, (_, best) in values.items():
            cells += [Cell(target, "a", 0, "", best), Cell(target, "b", 0, "", 0.1)]
        advice = {"always": dict.fromkeys(values, "scratch"), "never": dict.fromkeys(values, "transfer"), "none": {}}
        rows = [
            (target, name, source, score, said.get(target))
            for target in values
            for name, said in advice.items()
            for source, score in (("a", 2.0), ("b", 1.0))
        ]
        estimates = pd.DataFrame(rows, columns=["target", "estimator", "source", "score", "advice"])
        results = judge(truth_table(cells), estimates)
        assert set(results.loc[results["estimator"] == "always", "advice"]) == {"scratch"}
        assert set(results.loc[results["estimator"].isin(["none", "random"]), "advice"]) == {""}
        means = overall(results).set_index("estimator")
        # On one of the four targets the choice gave no result.
        assert means.loc["always", "no_transfer_advised"] == 3
        assert means.loc["always", "no_transfer_precision"] == pytest.approx(2 / 3)
        for name in ("never", "none", "random"):
            assert means.loc[name, "no_transfer_advised"] == 0
            assert math.isnan(means.loc[name, "no_transfer_precision"])

    def test_says_why_there_is_no_measure(self):
        failing = self.estimates({"a": math.nan, "b": math.nan}).assign(reason="no signature")
        results = judge(truth_table(self.CELLS), failing)
        assert results.iloc[0]["reason"] == "no signature"
        assert list(overall(results)["targets"]) == [0, 1]
        results = judge(truth_table(self.CELLS), self.estimates({"a": 1.0}))
        assert "fewer than two" in results.iloc[0]["reason"]

    def test_refuses_where_everything_failed(self):
        with pytest.raises(PGEError, match=r"all 1 failed\. went wrong"):
            truth_table(self.CELLS[-1:])

    def test_seed_agreement_needs_two_seeds(self):
        assert seed_agreement(self.CELLS[:6]) == 1
        assert math.isnan(seed_agreement([cell for cell in self.CELLS if cell.seed == 0]))


class TestStudy:
    def test_settings_leave_out_where_things_lie(self, tmp_path):
        study = start_study(config(tmp_path))
        job = study.target_job("upright", 0)
        same, other = study.target_job("upright", 0), study.target_job("upright", 1)
        same.data.num_workers, same.trainer.default_root_dir = 3, "elsewhere"
        assert settings_of(job) == settings_of(same)
        assert len({settings_of(job), settings_of(other), settings_of(job, "weights")}) == 3

    def test_one_probe_per_recipe_holds_all_rungs(self, tmp_path):
        estimators = "+evaluate.estimators={a:{probe:{budgets:[20]}},b:{probe:{budgets:[40]}},c:{probe:published}}"
        probes = start_study(config(tmp_path, estimators)).probes
        assert [probe.budgets for probe in probes] == [(20, 40), ()]

    def test_only_restricts_sources_and_targets(self, tmp_path):
        names = "evaluate.only=[upright,turned]"
        study = start_study(config(tmp_path, names, sources=SETS, targets=SETS))
        assert (study.sources, study.targets) == (("upright", "turned"), ("upright", "turned"))
        assert study.candidates("turned") == ["upright", "scratch"]

    @pytest.mark.parametrize(
        ("override", "message"),
        [
            ("evaluate.only=[upright]", "at least two sources"),
            ("evaluate.only=[nothing]", "evaluate.only"),
            ("evaluate.seeds=[]", "evaluate.seeds"),
            ("evaluate.seeds=[1,1]", "evaluate.seeds"),
            ("+data@evaluate.sources.scratch=digits", "other than 'auto' and 'scratch'"),
            ("+evaluate.sources={a b:{}}", "source name"),
            ("+evaluate.estimators.gap.prob=fast", "only the keys"),
            ("+evaluate.estimators.gap.probe=unknown", "probe"),
            ("evaluate.results=s3://bucket", "local folder"),
        ],
    )
    def test_refuses_before_any_work(self, tmp_path, override, message):
        with pytest.raises(ValueError, match=message):
            start_study(config(tmp_path, override))
        assert not Path(f"{tmp_path}/library-evaluation").exists()

    def test_shipped_families(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        with initialize_config_module("pge_lightning.conf", version_base="1.3"):
            digits, gray28 = (
                start_study(compose("pge", overrides=[f"family={name}", "output_dir=unused"]))
                for name in ("digits", "gray28")
            )
        assert (len(digits.sources), digits.targets, digits.seeds) == (8, ("digits",), (0, 1, 2))
        makers = {name: instantiate(digits.source_job(name).data, _partial_=True).func for name in digits.sources}
        assert set(makers.values()) == {MlxtendMnist}
        target = digits.target_job("digits", 0)
        assert instantiate(target.data, _partial_=True).func is SklearnDigits
        assert [probe.budgets for probe in digits.probes] == [(target.data.labels,)]
        assert (len(gray28.sources), gray28.sources) == (10, gray28.targets)
        seeds = {gray28.source_job(name).data.permute_classes for name in gray28.sources}
        assert len(seeds) == 10
        assert gray28.target_job("usps", 0).data.labels == 200
        assert gray28.source_job("usps").data.labels is None
        named = {each.name: each for each in gray28.estimators}
        assert {"gap", "linear_probe", "standing", "default", "published"} <= set(named)
        for name, contestant in named.items():
            labels = gray28.ranking_job("usps", contestant).data.labels
            assert labels == (None if name.endswith(("up to 5,000 labels", "up_to_5000_labels")) else 200)
        kinds = {name: each.estimator.kind for name, each in named.items() if isinstance(each.estimator, GapEstimator)}
        for name, kind in kinds.items():
            assert kind == (
                name.split()[0].rstrip(",") if name.startswith(("layerwise", "published")) else "kernelwise"
            )
            probe = named[name].estimator.probe.name
            assert probe == (kind if kind == "published" else "label_free" if name == "label_free" else "default")
        assert set(kinds) >= {"gap", "label_free", "layerwise, units not weighed, 200 labels"}
        assert set(SCORES) <= set(named)
        assert (named["gap"].estimator.generality, named["plain_gap"].estimator.generality) == (1, 0)
        assert set(named["signatures"].estimator.members) == {"gap", "label_free", "task2vec"}
        assert set(named["both_gaps"].estimator.members) == {"gap", "label_free"}
        assert "standing" in named["combined"].estimator.members
        assert "standing" not in named["combined_without_history"].estimator.members
        # One set of signatures per recipe, whatever the number of estimators that compare them.
        assert len({json.dumps(probe.recipe) for probe in gray28.probes}) == len(gray28.probes) == 4


class TestEvaluate:
    def test_writes_tables_and_picture(self, finished):
        folder, tau, _ = finished
        results = read(folder, "results")
        assert tau == pytest.approx(results.set_index("estimator").loc["gap", "weighted_tau"])
        assert all(Path(f"{folder}/library-evaluation/{name}").stat().st_size > 100 for name in KEPT)
        assert Path(f"{folder}/library-evaluation/ranking.png").read_bytes().startswith(b"\x89PNG")
        assert list(results["estimator"]) == ["gap", "literature", "source size", "own metric", "random"]
        means = read(folder, "estimators")
        assert list(means["kind"]) == ["opens no source"] * 2 + ["baseline"] * 3
        assert means["weighted_tau"].to_numpy() == pytest.approx(results["weighted_tau"].to_numpy(), nan_ok=True)
        summary = Path(f"{folder}/library-evaluation/summary.md").read_text()
        assert "| gap |" in summary
        assert "weightedtau(score, truth)" in summary

    def test_table_equals_the_cells(self, finished):
        cells, truth = read(finished[0], "cells"), read(finished[0], "truth").set_index("source")
        tuned = cells[cells["target"].notna()]
        assert len(tuned) == 3 * 2
        assert len(cells) == 2 + 3 * 2
        for source, part in tuned.groupby("source"):
            assert truth.loc[source, "mean"] == pytest.approx(part["value"].mean())
            assert truth.loc[source, "standard_deviation"] == pytest.approx(part["value"].std())

    def test_sources_hold_signatures_of_all_probes(self, finished):
        for name in ("turned", "negative"):
            assert {entry.probe for entry in Library(f"{finished[0]}/library").open(name).signatures} == {
                "fast",
                "published",
            }

    def test_estimators_look_at_their_own_data(self, finished):
        rankings = read(finished[0], "rankings")
        assert set(rankings.loc[rankings["estimator"] == "gap", "budget"]) == {40}
        assert set(rankings.loc[rankings["estimator"] == "literature", "budget"]) == {80}

    def test_second_run_does_nothing_twice(self, finished, capsys):
        folder, tau, estimators = finished
        files = [*Path(f"{folder}/library").rglob("*.json"), Path(f"{folder}/library-evaluation/cells.csv")]
        before = [(path.stat().st_mtime_ns, path.read_bytes()) for path in files]
        assert run(config(folder, estimators)) == tau
        assert [(path.stat().st_mtime_ns, path.read_bytes()) for path in files] == before
        shown = capsys.readouterr().out
        assert "3 of them in an earlier run" in shown
        assert "Target 'upright'" in shown
        assert "choice" in shown

    def test_the_summary_has_intervals_and_pairs_are_compared(self, crossed):
        folder, _ = crossed
        summary = Path(f"{folder}/library-evaluation/summary.md").read_text()
        rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in summary.splitlines() if "|" in line]
        heading, _, gap, *_ = rows
        assert heading[:6] == ["estimator", "weighted tau", "95 %", "Spearman", "regret", "95 %"]
        low, high = map(float, gap[2].split(" to "))
        assert low <= float(gap[1]) <= high
        pairs = read(folder, "comparisons")
        assert len(pairs) == 6  # of the gap, two facts and chance
        assert pairs["weighted_tau_p"].dropna().between(0, 1).all()

    def test_a_target_can_be_tuned_from_scratch_alone(self, finished, tmp_path):
        folder, _, estimators = finished
        study = start_study(config(folder, estimators, f"evaluate.results={tmp_path}"))
        with Progress(disable=True) as progress:
            worker = Worker(study, progress)
            (cell,) = worker.fine_tune("upright", 7, [SCRATCH])
        assert (cell.target, cell.source, cell.seed, cell.reason) == ("upright", SCRATCH, 7, "")
        assert 0 <= cell.value <= 1

    def test_another_target_keeps_the_sources(self, finished):
        folder, _, estimators = finished
        before = read(folder, "cells")
        run(config(folder, estimators, "evaluate.seeds=[0]", "evaluate.targets.upright.draw=1"))
        added = read(folder, "cells").iloc[len(before) :]
        assert list(added["target"]) == ["upright"] * 3

    def test_other_settings_of_a_source_are_refused(self, finished):
        folder, _, estimators = finished
        changed = "evaluate.train.model.lr=0.001"
        with pytest.raises(TaskError, match=r"turned, negative were trained with others.*overwrite"):
            run(config(folder, estimators, changed))

    def test_self_pairs_are_left_out(self, crossed):
        folder, tau = crossed
        cells, rankings = read(folder, "cells"), read(folder, "rankings")
        tuned = cells[cells["target"].notna()]
        assert len(tuned) == 3 * (2 + 1)
        assert not (tuned["source"] == tuned["target"]).any()
        assert not (rankings["source"] == rankings["target"]).any()
        results = read(folder, "results")
        assert tau == pytest.approx(results.loc[results["estimator"] == "gap", "weighted_tau"].mean())
        assert Path(f"{folder}/library-evaluation/ranking.png").read_bytes().startswith(b"\x89PNG")

    def test_overwrite_trains_again_what_changed(self, crossed):
        folder, _ = crossed
        before = Library(f"{folder}/library").open("turned").weights_file
        options = ("evaluate.seeds=[0]", "evaluate.sources.turned.draw=1", "library.overwrite=true")
        evaluate(config(folder, *options, sources=SETS, targets=["upright"]))
        assert Library(f"{folder}/library").open("turned").weights_file != before
        trained = read(folder, "cells").query("target.isna()")["source"]
        assert list(trained) == ["upright", "turned", "negative", "turned"]

    def test_what_fails_does_not_end_the_run(self, tmp_path, capsys):
        options = ("evaluate.seeds=[0]", "+data@evaluate.sources.broken=digits", "evaluate.sources.broken.size=0")
        options += ("+data@evaluate.targets.hopeless=digits", "evaluate.targets.hopeless.labels=99999")
        assert evaluate(config(tmp_path, *options)) is not None
        cells = read(tmp_path, "cells")
        failed = cells[cells["reason"].notna()]
        assert list(failed["source"]) == ["broken", "broken", "turned", "negative", "broken", "scratch"]
        assert "size" in failed["reason"].iloc[0]
        results = read(tmp_path, "results")
        reason = results.query("target == 'hopeless' and estimator == 'gap'")["reason"].item()
        assert "labels" in reason
        shown = " ".join(capsys.readouterr().out.split())
        assert "Failed training source 'broken'" in shown
        assert "of which 5 failed" in shown
        assert "Not ranked by gap for hopeless" in shown

    def test_metric_that_is_not_there_fails_every_cell(self, tmp_path):
        with pytest.raises(TaskError, match=r"all 3 failed.*optimized_metric"):
            run(config(tmp_path, "evaluate.metric=nothing", "evaluate.seeds=[0]"))

    def test_metric_that_is_not_finite_fails_the_cell(self, tmp_path):
        options = ("evaluate.metric=train_loss", "evaluate.finetune.model.lr=1e30", "evaluate.seeds=[0]")
        with pytest.raises(PGEError, match="finite metric"):
            evaluate(config(tmp_path, *options))

    def test_goes_on_after_a_kill(self, tmp_path):
        log = tmp_path / "library-evaluation" / "cells.csv"
        options = [sabotage(tmp_path / "flag", log, 4), "evaluate.seeds=[0]"]
        run_until_killed(config(tmp_path, *options), tmp_path / "flag")
        before = log.read_text()
        assert len(before.splitlines()) == 5  # the heading, two sources, two fine-tunings
        evaluate(config(tmp_path, *options))
        assert log.read_text().startswith(before)
        assert len(log.read_text().splitlines()) == 6

"""Evaluations with an encoder that is frozen while the head is fine-tuned, by themselves and beside the usual one."""

import shutil
from pathlib import Path

import lightning as L
import pandas as pd
import pytest
import torch
from hydra import compose, initialize_config_module
from rich.progress import Progress

from evaluate_helpers import SETS, config, run_until_killed, sabotage
from pge_lightning.app.evaluate import evaluate
from pge_lightning.app.study import settings_of, start_study
from pge_lightning.app.work import Worker
from pge_lightning.library import Library
from pge_lightning.record import SCRATCH, Record
from pge_lightning.records import Records

BOTH = "evaluate.encoders=[trained,frozen]"
TABLES = {"truth.csv", "rankings.csv", "results.csv", "comparisons.csv", "summary.md", "ranking.png"}


class Witness(L.Callback):
    """Keeps what a model holds before and after it is fine-tuned."""

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)

    def on_fit_start(self, trainer, pl_module):
        torch.save(pl_module.state_dict(), self.folder / f"{len(list(self.folder.iterdir()))}.pt")

    on_test_end = on_fit_start


def read(folder, name):
    return pd.read_csv(Path(folder) / f"{name}.csv", keep_default_na=False, na_values=[""])


def files(folder):
    return {path.name: path.read_bytes() for path in Path(folder).iterdir() if path.is_file()}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Three sets, each a source and a target, as usual."""
    folder = tmp_path_factory.mktemp("trained")
    evaluate(config(folder, "evaluate.seeds=[0]", sources=SETS, targets=SETS))
    return folder


@pytest.fixture(scope="module")
def both(trained, tmp_path_factory):
    """The same with frozen encoders beside."""
    folder = tmp_path_factory.mktemp("both")
    shutil.copytree(trained, folder, dirs_exist_ok=True)
    options = ("evaluate.seeds=[0]", BOTH, "+evaluate.estimators={gap:{},standing:{selector:${standing}}}")
    standing = "++standing={_target_:pge_lightning.estimators.StandingEstimator}"
    value = evaluate(config(folder, *options, standing, sources=SETS, targets=SETS))
    return folder / "library-evaluation", value


def test_each_has_a_report_of_its_own(both):
    results, value = both
    for folder in (results, results / "frozen"):
        assert set(files(folder)) >= {*TABLES, "cells.csv"}
    assert value == pytest.approx(read(results, "estimators").set_index("estimator").loc["gap", "weighted_tau"])
    assert "of the head alone" in (results / "frozen" / "summary.md").read_text()
    assert "of the head alone" not in (results / "summary.md").read_text()
    assert not read(results, "truth")["mean"].equals(read(results / "frozen", "truth")["mean"])


def test_what_was_done_with_trained_encoders_is_not_done_again(trained, both):
    results, _ = both
    assert files(results)["cells.csv"] == files(trained / "library-evaluation")["cells.csv"]
    pd.testing.assert_frame_equal(read(results, "truth"), read(trained / "library-evaluation", "truth"))
    cells = read(results, "cells"), read(results / "frozen", "cells")
    assert len(cells[1]) == 3 * (2 + 1)
    assert not set(cells[0]["settings"]) & set(cells[1]["settings"])


@pytest.mark.parametrize("encoder", ["trained", "frozen"])
def test_history_is_of_the_same_kind(both, encoder):
    folder = both[0] if encoder == "trained" else both[0] / "frozen"
    cells, rankings = read(folder, "cells"), read(folder, "rankings")
    tuned = cells[cells["target"].notna()]
    records = Records(Record(each.source, each.target, "accuracy", each.value) for each in tuned.itertuples())
    for target in SETS:
        said = rankings.query(f"target == '{target}' and estimator == 'standing'").set_index("source")["estimate"]
        expected = records.standings(exclude_target=target)["standing"]
        pd.testing.assert_series_equal(said, expected[said.index], check_names=False)


def test_the_second_run_does_nothing_twice(both):
    results, value = both
    folder = results.parent
    cells = [files(results)["cells.csv"], files(results / "frozen")["cells.csv"]]
    assert evaluate(config(folder, "evaluate.seeds=[0]", BOTH, sources=SETS, targets=SETS)) == value
    assert [files(results)["cells.csv"], files(results / "frozen")["cells.csv"]] == cells


def test_frozen_alone_reports_in_its_folder_and_keeps_what_sources_were_trained_with(tmp_path):
    evaluate(config(tmp_path, "evaluate.seeds=[0]", "evaluate.encoders=[frozen]"))
    results = tmp_path / "library-evaluation"
    assert set(files(results)) == {"cells.csv"}
    assert read(results, "cells")["source"].tolist() == ["turned", "negative"]
    assert set(files(results / "frozen")) >= {*TABLES, "cells.csv"}
    evaluate(config(tmp_path, "evaluate.seeds=[0]"))
    assert read(results, "cells")["target"].tolist()[2:] == ["upright"] * 3
    assert set(files(results)) >= TABLES


def test_the_encoder_stays_what_the_source_or_the_seed_made_it(trained, tmp_path):
    shutil.copytree(trained / "library", tmp_path / "library")
    (tmp_path / "seen").mkdir()
    witness = f"+callbacks.witness={{_target_:{__name__}.Witness,folder:{tmp_path}/seen}}"
    study = start_study(config(tmp_path, witness, "evaluate.encoders=[frozen]"))
    with Progress(disable=True) as progress:
        cells = Worker(study, progress).fine_tune("upright", 0, ["turned", SCRATCH], encoder="frozen")
    assert [cell.reason for cell in cells] == ["", ""]
    states = [torch.load(tmp_path / "seen" / f"{number}.pt", weights_only=True) for number in range(4)]
    weights = Library(tmp_path / "library").open("turned").load_weights()
    assert all(torch.equal(states[0][name], value) for name, value in weights.items())
    for before, after in (states[:2], states[2:]):
        assert all(torch.equal(before[name], after[name]) for name in weights)
        assert not torch.equal(before["head.weight"], after["head.weight"])
    assert torch.equal(states[0]["head.weight"], states[2]["head.weight"])


def test_one_bar_counts_everything(both):
    study = start_study(
        config(both[0].parent, "evaluate.seeds=[0]", BOTH, "evaluate.only=[turned,negative,upright]", sources=SETS)
    )
    with Progress(disable=True) as progress:
        worker = Worker(study, progress)
        for source in study.made:
            worker.train(source)
        for encoder in study.encoders:
            cells = worker.fine_tune("upright", 0, encoder=encoder)
            assert len(cells) == 3
            worker.rank("upright", study.estimators[0], Records())
    (bar,) = progress.tasks
    assert bar.completed == bar.total == 2


def test_goes_on_after_a_kill_among_the_frozen(tmp_path):
    log = tmp_path / "library-evaluation" / "frozen" / "cells.csv"
    options = [sabotage(tmp_path / "flag", log, 2), "evaluate.seeds=[0]", BOTH]
    run_until_killed(config(tmp_path, *options), tmp_path / "flag")
    usual, before = log.parents[1] / "cells.csv", log.read_text()
    assert len(before.splitlines()) == 3  # the heading, two fine-tunings
    kept = usual.read_text()
    evaluate(config(tmp_path, *options))
    assert usual.read_text() == kept
    assert log.read_text().startswith(before)
    assert len(log.read_text().splitlines()) == 4


def test_what_fails_in_one_way_does_not_end_the_other(tmp_path, capsys):
    options = ("evaluate.seeds=[0]", BOTH, "+data@evaluate.sources.broken=digits", "evaluate.sources.broken.size=0")
    evaluate(config(tmp_path, *options))
    results = tmp_path / "library-evaluation"
    for folder in (results, results / "frozen"):
        cells = read(folder, "cells").query("target.notna()")
        assert cells.loc[cells["reason"].notna(), "source"].tolist() == ["broken"]
        assert len(cells) == 4
    assert "Failed fine-tuning the head for 'upright' from 'broken'" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("encoders", ["[]", "[melted]", "[frozen,frozen]", "frozen"])
def test_other_kinds_are_refused_before_any_work(tmp_path, encoders):
    with pytest.raises(ValueError, match=r"`evaluate\.encoders` to name 'trained', 'frozen' or both"):
        start_study(config(tmp_path, f"evaluate.encoders={encoders}"))
    assert not Path(f"{tmp_path}/library-evaluation").exists()


# Finished work is found by these: they must not change, or everything that was ever done would be done again.
HASHES = {
    "digits": ("16672e6e5708", "ac498b216ef2"),
    "gray28": ("337e43e6570c", "2e84863b7a4d"),
    "text_intent": ("ba170c6fabb9", "faa2e2f37c8d"),
    "ucr": ("8f2ff0e4da90", "1e592879d9e0"),
}


@pytest.mark.parametrize("family", HASHES)
def test_settings_of_shipped_families_are_what_they_were(family, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PGE_DATA", "anywhere")
    with initialize_config_module("pge_lightning.conf", version_base="1.3"):
        study = start_study(compose("pge", overrides=[f"family={family}", "output_dir=unused"]))
    tuned = settings_of(study.target_job(study.targets[0], 0), "weights")
    assert (tuned, settings_of(study.source_job(study.sources[0]))) == HASHES[family]

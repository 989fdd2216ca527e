"""Two processes under a real Trainer: the same training, the same signature, the same choice, the same failure."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from lightning.fabric.plugins.environments.lightning import find_free_network_port
from torch.multiprocessing import start_processes

import ddp_failures
from ddp_failures import TALKS
from ddp_runs import RECIPES, RUNS
from pge_lightning.library import Library
from trainer_helpers import Net, callback, fit


def outcomes_in(folder):
    return [json.loads((folder / f"outcome-{rank}.json").read_text()) for rank in range(2)]


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    """What both ranks of ddp_runs.py found."""
    folder, script = tmp_path_factory.mktemp("ddp"), Path(__file__).with_name("ddp_runs.py")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*launcher, script, folder], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-5000:]
    return folder, outcomes_in(folder)


@pytest.fixture(scope="module")
def failures(tmp_path_factory):
    """How each run of ddp_failures.py ended on both ranks; one that takes a minute ends the process."""
    folder = tmp_path_factory.mktemp("failures")
    start_processes(ddp_failures.main, (folder, find_free_network_port()), nprocs=2, start_method="fork")
    return folder, outcomes_in(folder)


def stored(library, name):
    source = Library(library).open(name)
    return [source.load_signature(entry) for entry in source.signatures]


def assert_same(signatures, others):
    """Two runs have collected the same, up to a millionth."""
    for one, other in zip(signatures, others, strict=True):
        one.check_comparable(other)
        assert (one.starts, one.data, one.samples) == (other.starts, other.data, other.samples)
        for name, stack in one.units.items():
            torch.testing.assert_close(other.units[name], stack, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", RUNS)
def test_training_of_two_processes_is_bit_identical(name, two_processes):
    _, outcomes = two_processes
    assert [outcome["differing"][name] for outcome in outcomes] == [[], []]
    assert [outcome["ranks agree"][name] for outcome in outcomes] == [True, True]


@pytest.mark.parametrize("name", RUNS)
def test_two_processes_collect_the_signatures_of_one(name, two_processes, tmp_path):
    folder, _ = two_processes
    _, build, load = RUNS[name]
    pl.seed_everything(1, verbose=False)
    alone = callback(tmp_path, probe=RECIPES)
    fit(build(), load(), [alone])
    together = stored(folder / "library", name.replace(" ", "-"))
    assert [(one.probe.name, one.budget, one.restarts) for one in together][:4] == [
        ("tiny", 16, 2),
        ("ladder", 16, 3),
        ("ladder", 32, 3),
        ("ladder", 64, 3),
    ]
    assert together[4].restarts == together[4].samples // 8
    assert_same(together, alone.signatures)


def test_a_second_fit_keeps_the_signatures(two_processes):
    _, outcomes = two_processes
    assert [outcome["signatures after two fits"] for outcome in outcomes] == [5, 5]


def test_processes_that_the_trainer_forks_collect_the_same(tmp_path):
    pl.seed_everything(1, verbose=False)
    alone = callback(tmp_path / "one")
    fit(Net(), callbacks=[alone])
    fit(Net(), callbacks=[callback(tmp_path / "two")], strategy="ddp_fork", devices=2)
    assert_same(stored(tmp_path / "two", "mnist"), alone.signatures)


def test_two_processes_load_the_same_source_which_only_the_first_can_read(two_processes):
    _, outcomes = two_processes
    names = sorted(name.replace(" ", "-") for name in RUNS)
    first, second = outcomes[0]["selected"], outcomes[0]["selected next"]
    assert {first, second} < set(names)
    assert first != second  # its weights are gone by then
    assert [(outcome["selected"], outcome["selected next"]) for outcome in outcomes] == [(first, second)] * 2
    for selection in ("selection", "next selection"):
        assert [outcome["ranks agree"][selection] for outcome in outcomes] == [True, True]


ENDINGS = {
    "name taken": ("PGEError", "Rank 0: Expected a new source name, but 'first' is registered already"),
    "not finite": ("PGEError", "Rank 1: In restart 1: Expected a finite loss"),
    "training step": ("PGEError", "Rank 1: .*ZeroDivisionError: boom"),
    "loader": ("PGEError", r"Rank 1: OSError: sample \d+ is gone"),
    "dry": ("PGEError", "Expected at least one batch of 8 samples, but the training data holds 0"),
    "disk": ("PGEError", "Rank 0: Expected to write"),
    "factory": ("PGEError", "Rank 1: ZeroDivisionError"),
    "no sources": ("PGEError", "Rank 0: Expected sources in the library"),
    "selection": ("PGEError", "Rank 1: .*ZeroDivisionError: boom"),
    "flag": ("SIGTERMException", ""),
    "termination of all": ("SIGTERMException", ""),
    "termination of first": ("SIGTERMException", ""),
    "termination of second": ("SIGTERMException", ""),
    "keyboard": ("SystemExit", "1"),  # Lightning's end of a run that was interrupted from the keyboard
    "exit": ("SystemExit", "3"),
}


@pytest.mark.parametrize("name", ENDINGS)
def test_what_fails_on_one_process_ends_both_before_training(name, failures):
    _, outcomes = failures
    kind, text = ENDINGS[name]
    for how in (outcome[name] for outcome in outcomes):
        assert how["kind"] == kind
        assert re.search(text, how["text"])
        assert how["calls"] == 0


@pytest.mark.parametrize("name", TALKS)
def test_a_step_that_waits_for_other_processes_is_refused(name, failures):
    _, outcomes = failures
    for how in (outcome[name] for outcome in outcomes):
        assert how["kind"] == "PGEError"
        assert "communicates with the others through `" in how["text"]
        assert "`collect_signature` or `SourceSelector`" in how["text"]
        assert how["calls"] == 0


def test_processes_that_failed_together_work_together_again(failures):
    folder, outcomes = failures
    assert [outcome["afterwards"]["kind"] for outcome in outcomes] == ["none", "none"]
    assert Library(folder / "library").names() == ["afterwards", "first"]

"""Whatever cuts a phase off, at whatever line, everything is as before and training goes on exactly."""

import os
import random
import signal
import sys
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.exceptions import SIGTERMException

import pge_lightning
from grid import seeded_loader
from pge_lightning.callbacks import SourceSelectionCallback
from pge_lightning.errors import PGEError
from pge_lightning.library import Library
from trainer_helpers import (
    QUIET,
    TINY,
    AugmentingData,
    Bomb,
    MinedNet,
    Net,
    add_source,
    callback,
    differing,
    frozen,
    handled_interrupts,
    logger,
    module_state,
    process_state,
    randomness,
    trace,
    trainer_state,
)

PACKAGE = str(Path(pge_lightning.__file__).parent)
# Imports happen once per process: later phases do not come by here again.
DONE_ONCE = "<module>"


class BoomError(Exception):
    """A failure that nobody foresees."""


SHORT = replace(TINY, restarts=1, steps=2)
# Of that many lines that a phase comes by, one is struck; PGE_LINES=1 strikes every line, and takes ten minutes.
SHARE = int(os.environ.get("PGE_LINES", "40"))


class SteppingNet(Net):
    """Counts the steps of all its copies, and draws from all global random states in each."""

    steps = 0

    def training_step(self, batch, batch_idx):
        type(self).steps += 1
        np.random.rand(), random.random(), torch.rand(1)
        return super().training_step(batch, batch_idx)


@contextmanager
def lines(strike):
    """Call a function at every line of the package that is about to run, with the line's place."""

    def trace_line(frame, event, _):
        if event == "line":
            strike((frame.f_code.co_filename, frame.f_lineno))
        return trace_line

    def trace_call(frame, *_):
        inside = frame.f_code.co_filename.startswith(PACKAGE) and frame.f_code.co_name != DONE_ONCE
        return trace_line if inside else None

    tracer = sys.gettrace()
    sys.settrace(trace_call)
    try:
        yield
    finally:
        sys.settrace(tracer)


def fail():
    raise BoomError


def interrupt():
    os.kill(os.getpid(), signal.SIGINT)


def terminate():
    os.kill(os.getpid(), signal.SIGTERM)


KINDS = {
    "an error": (fail, (BoomError, PGEError)),
    "Ctrl-C": (interrupt, KeyboardInterrupt),
    "SIGTERM": (terminate, SIGTERMException),
}


def content(folder):
    return {str(path): path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}


class Striker(Callback):
    """Runs a phase again and again, each time cut off at another line, and keeps what was harmed.

    Args:
        make: Makes the callback whose phase it is.
        folder: The library.
        kind: One of ``KINDS``.
    """

    def __init__(self, make, folder, kind):
        self.make, self.folder, self.offset = make, folder, list(KINDS).index(kind) * SHARE // len(KINDS)
        self.strike, self.error = KINDS[kind]
        self.harmed, self.struck, self.completed, self.late = [], 0, 0, 0

    def on_train_start(self, trainer, pl_module):
        self._state(trainer, pl_module)
        firsts = {}
        for number, place in enumerate(self._phase(trainer, pl_module)):
            firsts.setdefault(place, number)
        for number in list(firsts.values())[self.offset :: SHARE]:
            before = self._state(trainer, pl_module)
            completed = self._try(trainer, pl_module, number)
            trainer._signal_connector.received_sigterm = False
            moved = self._moved(number, pl_module) if completed else set()
            changed = differing(before, self._state(trainer, pl_module))
            self.harmed += [(number, name) for name in changed if name not in moved]

    def _moved(self, number, module):
        """What a completed phase may change: a selection loads the source it names, be it the next but one."""
        if not isinstance(self.ours, SourceSelectionCallback):
            return set()
        loaded, state = Library(self.folder).open(self.ours.selection.source).load_weights(), module.state_dict()
        self.harmed += [(number, name) for name, value in loaded.items() if not torch.equal(state[name], value)]
        return {"weights", "buffers"}

    def _phase(self, trainer, module, number=None):
        """One phase, cut off at a line; the lines it came by."""
        self.ours, places = self.make(), []

        def strike(place):
            places.append(place)
            if len(places) - 1 == number:
                SteppingNet.steps = 0
                self.strike()

        self.ours.setup(trainer, module, "fit")
        with lines(strike):
            self.ours.on_train_start(trainer, module)
        return places

    def _try(self, trainer, module, number):
        """Strike a line; whether the phase was completed all the same."""
        files = content(self.folder)
        try:
            self._phase(trainer, module, number)
        except self.error:
            self.struck += 1
            self.late = max(self.late, SteppingNet.steps)
            # Past the phase's last line all is collected, and stays so.
            if content(self.folder) != files and not self.ours.state_dict().get("files"):
                self.harmed.append((number, "library"))
            return False
        self.completed += 1
        return True

    def _state(self, trainer, module):
        units = [id(unit) for unit in module.parameters()]
        return {**trainer_state(trainer, module, trainer.datamodule), **process_state(), "identities": units}


def trained(folder, callbacks=()):
    pl.seed_everything(1, verbose=False)
    module, data = SteppingNet(), SeededData()
    flags = {"max_epochs": 2, "enable_checkpointing": False, "logger": logger(folder), "callbacks": list(callbacks)}
    trainer = pl.Trainer(**QUIET, **flags)
    trainer.fit(module, data)
    return trace(trainer, module, data)


class SeededData(AugmentingData):
    """Draws from generators of its own wherever a data module can."""

    def train_dataloader(self):
        return seeded_loader()


def collecting(folder):
    return callback(folder / "library", probe=SHORT)


def selecting(folder):
    if not (folder / "library").exists():
        for seed in range(2):
            add_source(folder / "library", f"source{seed}", seed=seed, probe=SHORT)
    return SourceSelectionCallback(str(folder / "library"), probe=SHORT, verbose=False, cache=False)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("make", [collecting, selecting])
def test_a_phase_cut_off_at_any_line_leaves_no_trace(make, kind, tmp_path):
    striker = Striker(lambda: make(tmp_path), tmp_path / "library", kind)
    expected = trained(tmp_path / "reference")
    with handled_interrupts():
        found = trained(tmp_path / "struck", [striker])
    assert striker.harmed == []
    if make is collecting:  # a selection that completes changes the weights
        assert differing(expected, found) == []
    # After the last step, Lightning itself stops on SIGTERM; and some errors are foreseen, with another way to go.
    assert striker.struck > (1 if kind == "SIGTERM" else 3) * striker.completed
    assert kind == "an error" or striker.late <= 1


class Before(Callback):
    """Remembers the state right before the phase; or stops the run there, as if the phase did nothing."""

    def __init__(self, strike=None):
        self.strike, self.state = strike, None

    def on_train_start(self, trainer, pl_module):
        self.state = held(pl_module)
        if self.strike is not None:
            self.strike()
            raise SIGTERMException


def held(module):
    return frozen({**module_state(module), "randomness": randomness()})


def interrupted(kind, folder, step=0):
    """A run that is cut off, in the phase or in its place, and a whole run of the same module after it."""
    strike, error = KINDS[kind]
    pl.seed_everything(1, verbose=False)
    bomb = Bomb(step, strike)
    module, data = MinedNet(bomb), seeded_loader()
    before = Before(None if step else strike)
    ours = callback(folder / "library", probe=LONG)
    flags = {"max_epochs": 2, "logger": False, "enable_checkpointing": False}
    with handled_interrupts(), pytest.raises((BoomError, PGEError, SystemExit)) as caught:
        pl.Trainer(**QUIET, **flags, callbacks=[before, ours] if step else [before]).fit(module, data)
    after = held(module)
    module.bomb = None
    # The process goes on: the callback that was cut off may do its work now.
    callbacks = [ours] if step else []
    flags = {"max_epochs": 2, "logger": logger(folder), "enable_checkpointing": False}
    trainer = pl.Trainer(**QUIET, **flags, callbacks=callbacks)
    trainer.fit(module, data)
    return before.state, after, trace(trainer, module, data), (caught.value, error, bomb, ours)


LONG = replace(TINY, restarts=3, steps=20)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("step", [1, 30, 59])
def test_a_run_cut_off_in_the_phase_can_be_started_again(kind, step, tmp_path):
    before, after, found, (raised, error, bomb, ours) = interrupted(kind, tmp_path / "phase", step)
    assert differing(before, after) == []
    # At Ctrl-C, Lightning itself ends the process.
    assert isinstance(raised, SystemExit if kind == "Ctrl-C" else error)
    assert bomb.steps <= 1
    _, _, expected, _ = interrupted(kind, tmp_path / "reference")
    assert differing(expected, found) == []
    assert (len(ours.signatures), ours.source.name) == (1, "mnist")
    files = {path.name.rpartition("-")[0] or path.name for path in (tmp_path / "phase/library/mnist").iterdir()}
    assert len(list((tmp_path / "phase/library/mnist").iterdir())) == len(files) == 4  # what the second run registered
    assert files > {"encoder", "head", "source.json"}

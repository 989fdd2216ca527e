"""Runs that fail on one of two processes, which test_ddp.py forks; it reads how each run ended."""

import faulthandler
import json
import os
import shutil
import signal
import time

import torch
import torch.distributed as dist
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.strategies import DDPStrategy
from torch.distributed import _functional_collectives as functional
from torch.distributed.nn import functional as differentiable
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from pge_lightning.callbacks import SourceSelectionCallback
from trainer_helpers import LADDER, TINY, Net, callback, fit, handled_interrupts, make_data

PATIENCE = 60


class Clock:
    """Counts steps over all copies of a module."""

    def __init__(self):
        self.steps = 0

    def __deepcopy__(self, memo):
        return self


class FailingNet(Net):
    """Does something in one of its steps, on some of the processes."""

    def __init__(self, action, ranks=(1,), step=2):
        super().__init__()
        self.action, self.ranks, self.step, self.clock = action, ranks, step, Clock()

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        self.clock.steps += 1
        if self.clock.steps == self.step and dist.get_rank() in self.ranks:
            self.action(self, loss)
        return loss


def throw(error):
    def action(module, loss):
        raise error

    return action


class NanNet(Net):
    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        return loss * torch.nan if dist.get_rank() == 1 else loss


class Unreadable(TensorDataset):
    """Cannot be read on the second process."""

    def __init__(self):
        super().__init__(*make_data().tensors)

    def __getitem__(self, index):
        if dist.get_rank() == 1:
            raise OSError(f"sample {index} is gone")
        return super().__getitem__(index)

    __getitems__ = None


class DryOnSecond(IterableDataset):
    """A stream that has nothing for the second process."""

    def __iter__(self):
        return iter(()) if dist.get_rank() == 1 else iter(make_data())


class Disk(Callback):
    """The library's disk is lost after the callback has checked it."""

    def __init__(self, folder):
        self.folder = folder

    def on_fit_start(self, trainer, pl_module):
        if trainer.is_global_zero:
            shutil.rmtree(self.folder, ignore_errors=True)
            self.folder.write_text("no folder any more")


class Flag(Callback):
    """The flag that Lightning's handler of SIGTERM leaves, on the second process alone."""

    def on_train_start(self, trainer, pl_module):
        trainer._signal_connector.received_sigterm = dist.get_rank() == 1


def terminate(*ranks):
    """What a scheduler does, while the first process is in its second restart and the second one waits for it."""

    def action(module, loss):
        time.sleep(0.2)
        for rank in ranks:
            os.kill(module.processes[rank], signal.SIGTERM)

    return action


TALKS = {
    "all_reduce": lambda module, loss: dist.all_reduce(loss.detach()),
    "barrier": lambda module, loss: module.trainer.strategy.barrier(),
    "broadcast of an object": lambda module, loss: module.trainer.strategy.broadcast({"loss": 1}),
    "gathering objects": lambda module, loss: dist.all_gather_object([None, None], 1),
    "functional collective": lambda module, loss: functional.all_reduce(loss.detach(), "sum", dist.group.WORLD) + 1,
    "differentiable collective": lambda module, loss: differentiable.all_reduce(loss),
    "sending": lambda module, loss: dist.send(loss.detach(), 1 - dist.get_rank()),
}


def ending(module=None, data=None, callbacks=(), **flags):
    """How a run ends on this rank, after how many steps on the module itself, and after how many seconds."""
    faulthandler.dump_traceback_later(PATIENCE, exit=True)
    module, begin = module or Net(), time.perf_counter()
    strategy = DDPStrategy(process_group_backend="gloo")
    kind, text = "none", ""
    try:
        with handled_interrupts():
            fit(module, data, callbacks, strategy=strategy, devices=2, **flags)
    except BaseException as error:  # interruptions are what this is about
        kind, text = type(error).__name__, str(error)
    faulthandler.cancel_dump_traceback_later()
    return {"kind": kind, "text": text, "calls": module.calls, "seconds": time.perf_counter() - begin}


def endings(folder):
    """All ways to fail, by name."""

    def ours(name, **options):
        return [callback(folder / "library", name, **options)]

    def failing(error):
        return FailingNet(throw(error))

    ending(callbacks=ours("first"))
    yield "name taken", ending(callbacks=ours("first"))
    yield "not finite", ending(NanNet(), callbacks=ours("nan"))
    yield "training step", ending(failing(ZeroDivisionError("boom")), callbacks=ours("step"))
    yield "keyboard", ending(failing(KeyboardInterrupt()), callbacks=ours("keyboard"))
    yield "exit", ending(failing(SystemExit(3)), callbacks=ours("exit"))
    yield "loader", ending(data=DataLoader(Unreadable(), batch_size=16), callbacks=ours("loader"))
    yield "dry", ending(data=DataLoader(DryOnSecond(), batch_size=16), callbacks=ours("dry"))
    yield "disk", ending(callbacks=[Disk(folder / "lost"), callback(folder / "lost", "disk")])
    yield "flag", ending(callbacks=[Flag(), *ours("flag")])
    yield "factory", ending(callbacks=ours("factory", factory=lambda: 1 // (1 - dist.get_rank()) and Net()))
    for name, how in TALKS.items():
        yield name, ending(FailingNet(how, ranks=(0, 1), step=1), callbacks=ours("talk"))

    empty = SourceSelectionCallback(str(folder / "empty"), probe=TINY, verbose=False)
    yield "no sources", ending(callbacks=[empty])
    select = SourceSelectionCallback(str(folder / "library"), probe=TINY, verbose=False)
    yield "selection", ending(failing(ZeroDivisionError("boom")), callbacks=[select])

    processes = [None, None]
    dist.all_gather_object(processes, os.getpid())
    for name, ranks in {"all": (0, 1), "first": (0,), "second": (1,)}.items():
        module = FailingNet(
            terminate(*ranks), ranks=(0,), step=6
        )  # a restart has three steps, and one more comes first
        module.processes = processes
        yield f"termination of {name}", ending(module, callbacks=ours("termination", probe=LADDER))
    yield "afterwards", ending(callbacks=ours("afterwards"))


def main(rank, folder, port):
    """What one of the processes does."""
    torch.set_num_threads(1)
    os.environ.update(LOCAL_RANK=str(rank), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    outcome = dict(endings(folder))
    (folder / f"outcome-{rank}.json").write_text(json.dumps(outcome))
    dist.destroy_process_group()

"""Runs of two processes, each started by torchrun with a folder; test_ddp.py starts it and reads the outcome."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import lightning.pytorch as pl
import torch
import torch.distributed as dist
from lightning.pytorch.strategies import DDPStrategy
from torch import nn
from torch.utils.data import DataLoader
from torchmetrics.classification import MulticlassAccuracy

from pge_lightning.callbacks import SourceSelectionCallback
from pge_lightning.library import Library
from pge_lightning.probe import PROBES
from trainer_helpers import (
    LADDER,
    QUIET,
    TINY,
    Net,
    OwnSampler,
    Stream,
    callback,
    differing,
    fit,
    logger,
    make_data,
    make_loader,
    trace,
)

# Two restarts, three of them at three budgets, and as many as there are pairs of batches, which have one mean.
RECIPES = [TINY, LADDER, replace(PROBES["published"], batch_size=8)]


class UnusedNet(Net):
    def __init__(self):
        super().__init__()
        self.unused = nn.Linear(2, 2)


class FrozenNet(Net):
    """Its first layer is frozen at values of its own."""

    def __init__(self):
        super().__init__()
        self.encoder[0].requires_grad_(requires_grad=False)


class TalkingNet(Net):
    """Asks the other processes for their values in every step, in the ways that work alone as well."""

    def __init__(self):
        super().__init__()
        self.shared = MulticlassAccuracy(3, dist_sync_on_step=True)

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        self.log("everywhere", self.all_gather(loss.detach()).mean())
        self.log("shared", self.shared(self(batch[0]), batch[1]), sync_dist=True)
        return loss


def sampled_loader():
    return DataLoader(make_data(), sampler=OwnSampler(64), batch_size=16)


RUNS = {
    "default": ({}, Net, make_loader),
    "static graph": ({"static_graph": True}, Net, make_loader),
    "unused parameters": ({"find_unused_parameters": True}, UnusedNet, make_loader),
    "gradients as bucket views": ({"gradient_as_bucket_view": True}, Net, make_loader),
    "sampler with state": ({}, Net, sampled_loader),
    "uneven data": ({}, Net, lambda: make_loader(samples=65, batch_size=15)),
    "stream": ({}, Net, lambda: DataLoader(Stream(), batch_size=16)),
    "frozen layer": ({}, FrozenNet, make_loader),
    "step that asks the others": ({}, TalkingNet, make_loader),
}


def strategy(**options):
    return DDPStrategy(process_group_backend="gloo", **options)


def run(name, folder, callbacks=()):
    options, build, load = RUNS[name]
    pl.seed_everything(1, verbose=False)
    module, data = build(), load()
    trainer = pl.Trainer(
        **{**QUIET, "devices": 2},
        strategy=strategy(**options),
        max_epochs=2,
        logger=logger(folder),
        enable_checkpointing=False,
        callbacks=list(callbacks),
    )
    trainer.fit(module, data)
    return module, trace(trainer, module, data)


def weights_of_all_ranks(module):
    flat = nn.utils.parameters_to_vector(module.parameters()).detach()
    everywhere = [torch.empty_like(flat) for _ in range(2)]
    dist.all_gather(everywhere, flat)
    return all(torch.equal(flat, other) for other in everywhere)


def selected(library):
    """What a rank selects and loads. Only the first can read the library: others may have no such disk."""
    place = str(library) if dist.get_rank() == 0 else "/nowhere"
    selection = SourceSelectionCallback(place, probe=TINY, verbose=True)
    module = Net()
    fit(module, callbacks=[selection], strategy=strategy(), devices=2, max_steps=1)
    return selection.selection.source, weights_of_all_ranks(module)


def main(folder):
    outcome = {"differing": {}, "ranks agree": {}}
    for name in RUNS:
        place = folder / name.replace(" ", "_")
        _, expected = run(name, place / "without")
        ours = callback(folder / "library", name.replace(" ", "-"), probe=RECIPES)
        module, found = run(name, place / "with", [ours])
        outcome["differing"][name] = differing(expected, found)
        outcome["ranks agree"][name] = weights_of_all_ranks(module)
    fit(module, callbacks=[ours], strategy=strategy(), devices=2)
    outcome["signatures after two fits"] = len(ours.signatures)

    outcome["selected"], outcome["ranks agree"]["selection"] = selected(folder / "library")
    dist.barrier()
    if dist.get_rank() == 0:
        nearest = Library(folder / "library").open(outcome["selected"]).weights_file.file
        (folder / "library" / outcome["selected"] / nearest).unlink()
    outcome["selected next"], outcome["ranks agree"]["next selection"] = selected(folder / "library")

    (folder / f"outcome-{dist.get_rank()}.json").write_text(json.dumps(outcome))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))

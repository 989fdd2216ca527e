"""Runs of two processes, each started by torchrun with a folder; test_ddp.py starts it and reads the outcome."""

import json
import sys
from pathlib import Path

import lightning.pytorch as pl
import torch
import torch.distributed as dist
from lightning.pytorch.strategies import DDPStrategy
from torch import nn
from torch.utils.data import DataLoader

from pge_lightning.callbacks import SourceSelectionCallback
from pge_lightning.errors import PGEError
from trainer_helpers import (
    QUIET,
    TINY,
    Net,
    OwnSampler,
    callback,
    differing,
    fit,
    logger,
    make_data,
    make_loader,
    trace,
)


class UnusedNet(Net):
    def __init__(self):
        super().__init__()
        self.unused = nn.Linear(2, 2)


class NanOnSecondRank(Net):
    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        return loss * torch.nan if dist.get_rank() == 1 else loss


def sampled_loader():
    return DataLoader(make_data(), sampler=OwnSampler(64), batch_size=16)


RUNS = {
    "default": ({}, Net, make_loader),
    "static graph": ({"static_graph": True}, Net, make_loader),
    "unused parameters": ({"find_unused_parameters": True}, UnusedNet, make_loader),
    "sampler with state": ({}, Net, sampled_loader),
}


def run(name, folder, callbacks=()):
    options, build, load = RUNS[name]
    pl.seed_everything(1, verbose=False)
    module, data = build(), load()
    strategy = DDPStrategy(process_group_backend="gloo", **options)
    trainer = pl.Trainer(
        **{**QUIET, "devices": 2},
        strategy=strategy,
        max_epochs=2,
        logger=logger(folder),
        enable_checkpointing=False,
        callbacks=list(callbacks),
    )
    trainer.fit(module, data)
    return module, trace(trainer, module, data)


def refusal(**options):
    """The error that a run ends with on this rank."""
    module, callbacks = options.pop("module", Net)(), options.pop("callbacks")
    try:
        fit(module, callbacks=callbacks, strategy=DDPStrategy(process_group_backend="gloo"), devices=2)
    except PGEError as error:
        return str(error), module.calls
    return "", module.calls


def weights_of_all_ranks(module):
    flat = nn.utils.parameters_to_vector(module.parameters()).detach()
    everywhere = [torch.empty_like(flat) for _ in range(2)]
    dist.all_gather(everywhere, flat)
    return all(torch.equal(flat, other) for other in everywhere)


def main(folder):
    outcome = {"differing": {}, "ranks agree": {}}
    for name in RUNS:
        place = folder / name.replace(" ", "_")
        _, expected = run(name, place / "without")
        ours = callback(folder / "library", name.replace(" ", "-"))
        module, found = run(name, place / "with", [ours])
        outcome["differing"][name] = differing(expected, found)
        outcome["ranks agree"][name] = weights_of_all_ranks(module)
    fit(module, callbacks=[ours], strategy=DDPStrategy(process_group_backend="gloo"), devices=2)
    outcome["signatures after two fits"] = len(ours.signatures)

    selection = SourceSelectionCallback(str(folder / "library"), probe=TINY, verbose=True)
    strategy = DDPStrategy(process_group_backend="gloo")
    module = Net()
    fit(module, callbacks=[selection], strategy=strategy, devices=2, max_steps=1)
    outcome["selected"], outcome["ranks agree"]["selection"] = selection.selection.source, weights_of_all_ranks(module)

    outcome["taken"] = refusal(callbacks=[callback(folder / "library", "default")])
    outcome["nan"] = refusal(callbacks=[callback(folder / "library", "nan")], module=NanOnSecondRank)
    (folder / f"outcome-{dist.get_rank()}.json").write_text(json.dumps(outcome))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))

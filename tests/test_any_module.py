"""Any module: each kind is collected from, leaves no trace, and takes a selected source's weights."""

from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import nn

from pge_lightning.callbacks import PrincipalGradientCallback
from pge_lightning.collect import collect_signature
from pge_lightning.encoder import encoder_state
from pge_lightning.gap import compare
from pge_lightning.isolation.unwrap import plain
from pge_lightning.library import Library
from pge_lightning.select import SourceSelector
from pge_lightning.signature import Signature
from pge_lightning.source import SourceFacts
from trainer_helpers import QUIET, differing, randomness
from zoo.kind import Kind
from zoo.kinds import KINDS
from zoo.runs import PROBE, content, everything, fit, registering
from zoo.table import readme_table, table


@dataclass(frozen=True)
class Runs:
    """What two runs of one kind gave, one of them with the callback."""

    kind: Kind
    library: Path
    signature: Signature
    module: nn.Module
    without: dict[str, Any]
    traced: dict[str, Any]


def train(kind, library):
    without = fit(kind, library)[1]
    callback = registering(kind, library, "own")
    module, traced = fit(kind, library, callback=callback)
    fit(kind, library, 1, registering(kind, library, "other"))
    return Runs(kind, library, callback.signatures[0], module, without, traced)


def train_by_hand(kind, library):
    """The same for a module that no Trainer knows."""

    def held(module, data):
        return {"module": everything(module), "data": content(vars(data)), "randomness": content(randomness())}

    for seed, name in enumerate(["own", "other"]):
        torch.manual_seed(1)
        module, data = kind.build(3), kind.data(seed, 3)
        before = held(module, data)
        signature = collect_signature(module, data, loss_fn=kind.loss_fn, probe=PROBE, encoder=kind.encoder)
        after, weights = held(module, data), encoder_state(module, kind.encoder)
        facts = SourceFacts("encoder", 3, len(data.dataset), None, None, 0.0, 0.0, str(datetime.now(timezone.utc)))
        Library(library).register(name, weights, facts, [Library(library).put_signature(name, signature)])
        if name == "own":
            runs = Runs(kind, library, signature, module, before, after)
    return runs


@pytest.fixture(scope="module")
def runs(request, tmp_path_factory):
    kind = KINDS[request.param]
    folder = tmp_path_factory.mktemp("library")
    return (train if kind.trainer else train_by_hand)(kind, folder)


each_kind = pytest.mark.parametrize("runs", KINDS, indirect=True)


@each_kind
def test_a_signature_is_collected(runs):
    kind, signature = runs.kind, runs.signature
    assert list(signature.units) == kind.units(runs.module)
    assert signature.units
    for name, stack in signature.units.items():
        assert stack.shape == (PROBE.restarts, *runs.module.get_parameter(name).shape)
        assert stack.isfinite().all()
        if not name.endswith(kind.still):
            assert stack.flatten(1).any(1).all()
            assert (stack[0] != stack[1]).any()
        if stack.ndim > 2 and not name.endswith(kind.fixed):
            assert len(set(signature.starts[name])) == PROBE.restarts


@each_kind
def test_signatures_of_other_data_and_another_head_are_comparable(runs):
    kind = runs.kind
    torch.manual_seed(2)
    other = collect_signature(
        configured(kind.build(4)), kind.data(2, 4), probe=PROBE, loss_fn=kind.loss_fn, encoder=kind.encoder
    )
    runs.signature.check_comparable(other)
    assert 0 < compare(runs.signature, other).value < 2


@each_kind
def test_training_is_bit_identical_with_and_without_collecting(runs):
    assert differing(runs.without, runs.traced) == []
    assert runs.kind.trainer is False or runs.traced["global_step"] > 0


@each_kind
def test_the_nearest_source_is_selected_loaded_and_trained_on(runs):
    kind = runs.kind
    torch.manual_seed(3)
    fresh, data = configured(kind.build(3)), kind.data(0, 3)
    selector = SourceSelector(runs.library, probe=PROBE, loss_fn=kind.loss_fn, verbose=False)
    selection = selector.select(fresh, data)
    gaps = {line.name: line.estimate.value for line in selection.ranking.sources}
    assert selection.source == "own"
    assert gaps["own"] == pytest.approx(0, abs=1e-6)
    assert gaps["other"] > 1e-3
    for name in runs.signature.units:
        assert torch.equal(plain(fresh).get_parameter(name), runs.module.get_parameter(name))
    values, trained = plain(fresh).state_dict(), runs.module.state_dict()
    for name, stored in Library(runs.library).open("own").load_weights().items():
        assert torch.equal(values[name], stored)
        assert torch.equal(trained[name], stored)
    if kind.trainer:
        trainer = pl.Trainer(**QUIET, max_steps=1, logger=False, enable_checkpointing=False)
        trainer.fit(fresh, data)
        assert trainer.global_step > 0


class Leaky(PrincipalGradientCallback):
    """The callback, with one trace left on purpose."""

    def on_train_start(self, trainer, pl_module):
        super().on_train_start(trainer, pl_module)
        LEAKS[self.name](trainer, pl_module)


def _leak_weights(trainer, module):
    with torch.no_grad():
        module.head.bias[0] += 1e-6


LEAKS = {
    "module": _leak_weights,
    "buffer": lambda trainer, module: module.encoder[1].running_mean.add_(1e-6),
    "attribute": lambda trainer, module: module.seen.append(0),
    "randomness": lambda trainer, module: torch.rand(1),
    "batches": lambda trainer, module: trainer.train_dataloader.dataset.tensors[0].add_(1e-6),
    "optimizers": lambda trainer, module: trainer.optimizers[0].param_groups[0].update(lr=0.011),
    "metrics": lambda trainer, module: module.log("pge", 1.0),
}


@pytest.mark.parametrize("leak", LEAKS)
def test_the_comparison_notices_a_trace(leak, tmp_path):
    kind = next(iter(KINDS.values()))
    leaky = Leaky(library=str(tmp_path), name=leak, probe=PROBE)
    different = differing(fit(kind, tmp_path)[1], fit(kind, tmp_path, callback=leaky)[1])
    assert {"buffer": "module", "attribute": "module"}.get(leak, leak) in different


def configured(module):
    """A module whose layers exist, as a Trainer would have seen to."""
    if isinstance(module, pl.LightningModule):
        module.configure_model()
    return module


def test_the_readme_shows_all_kinds():
    assert len(KINDS) >= 20
    assert readme_table() == table()

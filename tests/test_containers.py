"""Several loaders: what a Trainer makes of them, in every mode."""

import itertools
from dataclasses import replace

import lightning.pytorch as pl
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from lightning.pytorch.utilities import CombinedLoader
from torch.nn import functional as F
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from helpers import TINY
from pge_lightning.callbacks import SourceSelectionCallback
from pge_lightning.collect import collect_signature
from pge_lightning.errors import PGEError
from pge_lightning.probe import Probe
from pge_lightning.samples import sample_pool
from pge_lightning.select import SourceSelector
from trainer_helpers import QUIET, Net, add_source, callback, differing, fit, logger, make_loader, plain_loss, trace
from trainer_helpers import TINY as SMALL

SINGLE_PASS = Probe(name="pass", restarts=None, steps=2, batch_size=8, budgets=(), paired=False)


def numbers(first, size, **options):
    return DataLoader(TensorDataset(torch.arange(first, first + size)), **{"batch_size": 8, **options})


class Endless(IterableDataset):
    def __iter__(self):
        return ((number,) for number in itertools.count())


def three():
    return {"a": numbers(0, 20, shuffle=True), "b": [numbers(100, 50), DataLoader(Endless(), 8)]}


def read(batch):
    """Numbers in place of tensors."""
    return torch.utils._pytree.tree_map(lambda x: x.tolist(), batch)


MODES = {
    "min_size": (20, {"a": [[0, 19]], "b": [[[100, 147]], [[0, 60]]]}),
    "max_size_cycle": (64, {"a": [[0, 19]], "b": [[[100, 119]], [[0, 19]]]}),
    "max_size": (64, {"a": [[0, 19]], "b": [[[100, 119]], [[0, 19]]]}),
}


@pytest.mark.parametrize("mode", MODES)
def test_loaders_side_by_side_give_batches_in_their_structure(mode):
    size, expected = MODES[mode]
    pool = sample_pool(CombinedLoader(three(), mode), TINY)
    assert len(pool) == size
    assert read(pool.batch([0, 19])) == expected


def test_shorter_loaders_start_again_or_are_missing():
    again, missing = (sample_pool(CombinedLoader(three(), mode), TINY) for mode in ("max_size_cycle", "max_size"))
    assert read(again.batch([19, 20, 63])) == {"a": [[19, 0, 3]], "b": [[[119, 120, 113]], [[19, 20, 63]]]}
    assert read(missing.batch([19, 20, 63])["b"]) == [[[119, 120]], [[19, 20, 63]]]
    assert missing.batch([20, 63])["a"] is None


@pytest.mark.parametrize("make", [three, lambda: list(three().values()), lambda: tuple(three()["b"])])
def test_plain_containers_are_gone_through_as_a_trainer_does(make):
    pool = sample_pool(make(), TINY)
    assert len(pool) == 64
    assert type(pool.batch([0])) is type(make())
    assert pool.fingerprint() == sample_pool(CombinedLoader(make(), "max_size_cycle"), TINY).fingerprint()


def test_lists_of_batches_are_no_containers():
    assert len(sample_pool([torch.ones(20), torch.ones(20)], TINY)) == 40


def one_by_one():
    return sample_pool(CombinedLoader([numbers(0, 30), numbers(100, 90)], "sequential"), TINY)


def test_loaders_one_after_another_share_the_budget_and_take_turns():
    pool = one_by_one()
    assert len(pool) == 30 + 90
    probe = Probe(restarts=2, steps=12, batch_size=16, budgets=(64,))
    batches = [pool.batch(indices)[0] for indices in pool.draw(64, probe, 0)]
    owners = [set((batch >= 100).tolist()) for batch in batches]
    assert all(len(owner) == 1 for owner in owners)
    late = [owner == {True} for owner in owners]
    assert [late[at : at + 4].count(True) for at in (0, 4, 8)] == [3, 3, 3]
    drawn = [set(torch.cat([b for b in batches if (b[0] >= 100) == late]).tolist()) for late in (False, True)]
    assert [len(each) for each in drawn] == [16, 48]
    assert all(len(set(batch.tolist())) == len(batch) == 16 for batch in batches)
    assert pool.draw(64, probe, 0) == one_by_one().draw(64, probe, 0) != pool.draw(64, probe, 1)


def test_a_single_pass_goes_through_every_loader_once():
    pool = sample_pool(CombinedLoader([numbers(0, 20), numbers(100, 44)], "sequential"), SINGLE_PASS)
    drawn = [pool.draw(64, SINGLE_PASS, restart) for restart in range(4)]
    assert all(len(batches) == 2 for batches in drawn)
    seen = [i for batches in drawn for batch in batches for i in batch]
    assert len(set(seen)) == len(seen)
    assert {i < 20 for i in seen} == {True, False}


def test_a_small_budget_still_asks_every_loader():
    pool = one_by_one()
    batches = pool.draw(4, Probe(restarts=1, steps=4, batch_size=4, budgets=(4,)), 0)
    assert sorted({len(batch) for batch in batches}) == [2, 3]
    assert {batch[0] < 30 for batch in batches} == {True, False}


def test_parts_of_loaders_one_after_another_stay_apart():
    part = one_by_one().part(range(20, 40))
    assert len(part) == 20
    assert read(part.batch([0, 9])) == [[20, 29]]
    assert read(part.batch([10, 19])) == [[100, 109]]
    assert {len({i < 10 for i in batch}) for batch in part.draw(20, TINY, 0)} == {1}


@pytest.mark.parametrize("mode", [*MODES, "sequential"])
def test_fingerprints_cover_every_loader_and_the_mode(mode):
    def fingerprint(first=0, second=100, mode=mode):
        loaders = [numbers(first, 40, num_workers=1), numbers(second, 40)]
        return sample_pool(CombinedLoader(loaders, mode), TINY).fingerprint()

    other = "sequential" if mode == "min_size" else "min_size"
    found = [fingerprint(), fingerprint(first=1), fingerprint(second=101), fingerprint(mode=other)]
    assert len(set(found)) == 4
    assert fingerprint() == found[0]


def test_limits_hold_for_each_loader():
    combined = CombinedLoader([numbers(0, 40), numbers(100, 40)], "max_size_cycle")
    combined.limits = [2, float("inf")]
    assert len(sample_pool(combined, TINY)) == 40
    assert read(sample_pool(combined, TINY).batch([15, 16])) == [[[15, 0]], [[115, 116]]]
    assert len(sample_pool(combined, TINY, limit=4)) == 32


@pytest.mark.parametrize("mode", [*MODES, "sequential"])
def test_a_loader_without_samples_is_an_error(mode):
    with pytest.raises(PGEError, match="Expected samples in each of 2 training loaders, but number 1 has none"):
        sample_pool(CombinedLoader([numbers(0, 40), numbers(0, 0)], mode), TINY)


def test_nothing_moves():
    loaders = [numbers(0, 40, shuffle=True, num_workers=1, persistent_workers=True, generator=torch.Generator())]
    loaders.append(DataLoader(Endless(), 8))
    next(iter(loaders[0]))
    combined = CombinedLoader({"a": loaders}, "min_size")
    before = [dict(vars(loader)) for loader in loaders], loaders[0].generator.get_state()
    sample_pool(combined, TINY).fingerprint()
    assert [dict(vars(loader)) for loader in loaders] == before[0]
    assert torch.equal(loaders[0].generator.get_state(), before[1])
    assert combined._iterator is None


class Several(Net):
    """Adds up the losses over whatever loaders there are."""

    def training_step(self, batch, batch_idx):
        parts = [part for part in batch.values() if part is not None] if isinstance(batch, dict) else [batch]
        self.seen.append([number.tolist() for *_, number in parts])
        loss = sum(F.cross_entropy(self(x), y) for x, y, _ in parts)
        self.log("train_loss", loss)
        return loss


def pair(seed=5):
    shuffle = torch.Generator().manual_seed(seed)
    return {"a": make_loader(1, 64, generator=shuffle), "b": make_loader(2, 24, batch_size=8, num_workers=1)}


def run(mode, folder, extra=()):
    """Two epochs over two loaders; what they leave behind."""
    pl.seed_everything(1, verbose=False)
    module, data = Several(), CombinedLoader(pair(), mode) if mode else pair()
    callbacks = list(extra)
    trainer = pl.Trainer(**QUIET, max_epochs=2, logger=logger(folder), enable_checkpointing=False, callbacks=callbacks)
    trainer.fit(module, data)
    return trace(trainer, module, data)


@pytest.mark.parametrize("mode", ["", *MODES])
def test_training_is_bit_identical_and_two_calls_give_the_same_signature(mode, tmp_path):
    ours = callback(tmp_path / "library")
    assert differing(run(mode, tmp_path / "without"), run(mode, tmp_path / "with", [ours])) == []
    pl.seed_everything(1, verbose=False)
    combined = CombinedLoader(pair(), mode or "max_size_cycle")
    signature = collect_signature(Several(), combined, probe=SMALL, encoder="encoder")
    assert signature.samples == ours.signatures[0].samples
    assert all(torch.equal(stack, ours.signatures[0].units[name]) for name, stack in signature.units.items())


class Both(pl.LightningDataModule):
    def train_dataloader(self):
        return pair()


@pytest.mark.parametrize("data", [pair, Both])
def test_selection_takes_several_loaders_in_one_call_and_in_two(data, tmp_path):
    add_source(tmp_path, "other", probe=SMALL)
    selector = SourceSelector(str(tmp_path), probe=SMALL, verbose=False)
    assert selector.select(Several(), data()).source == "other"
    ours = SourceSelectionCallback(str(tmp_path), probe=SMALL)
    fit(Several(), data(), [ours])
    assert ours.selection.source == "other"


def test_a_limit_of_the_trainer_holds_for_each_loader(tmp_path):
    for flags, size in (({"limit_train_batches": 1}, 8), ({"limit_train_batches": 0.5}, 32)):
        ours = callback(tmp_path / str(size), probe=replace(SMALL, budgets=(8,)))
        fit(Several(), pair(), [ours], **flags)
        assert ours.signatures[0].samples == max(size, 16)


def test_loaders_one_after_another_are_warmed_up_on_before_training(tmp_path):
    combined = CombinedLoader(list(pair().values()), "sequential")
    signature = collect_signature(Net(), combined, loss_fn=plain_loss, probe=SMALL, encoder="encoder")
    assert (signature.samples, signature.budget) == (88, 16)


def test_a_dev_run_takes_several_loaders(tmp_path):
    ours = callback(tmp_path)
    fit(Several(), CombinedLoader(pair(), "min_size"), [ours], fast_dev_run=1)
    assert [signature.samples for signature in ours.signatures] == [8]


@given(
    st.lists(st.integers(1, 60), min_size=1, max_size=4), st.integers(8, 80), st.sampled_from([*MODES, "sequential"])
)
@settings(deadline=None, max_examples=60)
def test_every_batch_reads_samples_that_there_are_and_no_more_than_the_budget(sizes, budget, mode):
    loaders = [numbers(100 * number, size) for number, size in enumerate(sizes)]
    probe = Probe(restarts=2, steps=7, batch_size=8, budgets=(8,))
    assume(sum(sizes) >= 8 if mode == "sequential" else min(sizes) >= 8)
    pool = sample_pool(CombinedLoader(loaders, mode), probe)
    budget = min(budget, len(pool))
    batches = [pool.batch(indices) for indices in pool.draw(budget, probe, 1)]
    assert len(batches) == 7
    seen = [set() for _ in sizes]
    for batch in batches:
        parts = [part[0].tolist() for part in (batch if mode != "sequential" else [batch]) if part is not None]
        assert all(len({i // 100 for i in part}) == 1 and 1 <= len(part) <= 8 for part in parts)
        for part in parts:
            seen[part[0] // 100].update(i % 100 for i in part)
    assert all(found <= set(range(size)) for found, size in zip(seen, sizes, strict=True))
    most = [budget] if mode != "sequential" else [max(2, budget * size // len(pool)) for size in sizes]
    assert all(len(found) <= share for found, share in zip(seen, itertools.cycle(most), strict=False))

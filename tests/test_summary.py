"""Summaries: how samples are reduced, and how a library keeps them beside a source."""

from dataclasses import replace

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from pge_lightning.callbacks import PrincipalGradientCallback
from pge_lightning.errors import ArtifactError, PGEError
from pge_lightning.library import Library
from pge_lightning.probe import Probe
from pge_lightning.samples import sample_pool
from pge_lightning.summary import KIND, Summary, reduce_inputs, summarise
from trainer_helpers import TINY, MinedNet, Net, callback, fit, frozen, generators, make_data, make_loader

READ = Probe("read", restarts=1, steps=1, batch_size=1, budgets=(1000,))


@pytest.mark.parametrize(
    ("shape", "length"),
    [
        ((5,), 1),
        ((5, 3), 3),
        ((5, 64), 64),
        ((5, 90), 64),
        ((5, 2, 100), 32),
        ((5, 3, 9, 31), 48),
        ((5, 1, 8, 8, 9), 64),
    ],
)
def test_inputs_of_any_size_become_vectors_of_one_length(shape, length):
    values = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    reduced = reduce_inputs(values)
    assert (reduced.dtype, reduced.shape) == (torch.float32, (5, length))
    if len(shape) < 2 or shape[1] in (3, 64):
        assert reduced.mean().item() == pytest.approx(values.mean().item(), abs=0.1)


def test_images_become_means_over_a_grid():
    image = torch.arange(64).reshape(1, 1, 8, 8).byte()
    expected = [image[0, 0, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2].float().mean() for i in range(4) for j in range(4)]
    assert reduce_inputs(image).tolist() == [expected]


def test_tokens_become_counts_whatever_their_order_and_the_padding():
    tokens = torch.tensor([[5, 7, 5, 0], [7, 5, 5, 0], [5, 7, 9, 11]])
    rows = reduce_inputs(tokens)
    assert torch.equal(rows[0], rows[1])
    assert sorted(rows[0][rows[0] > 0].tolist()) == pytest.approx([1 / 5**0.5, 2 / 5**0.5])
    torch.testing.assert_close(rows.norm(dim=1), torch.ones(3))
    assert torch.equal(rows[:2], reduce_inputs(torch.tensor([[5, 7, 5], [7, 5, 5]])))


def test_an_attention_mask_says_which_tokens_count():
    tokens = torch.tensor([[5, 7, 9, 9]])
    masked = reduce_inputs({"attention_mask": torch.tensor([[1, 1, 0, 0]]), "input_ids": tokens})
    assert torch.equal(masked, reduce_inputs(torch.tensor([[5, 7, 0, 0]])))
    assert torch.equal(reduce_inputs({"x": tokens}), reduce_inputs(tokens))


def test_numbers_of_tokens_are_spread_over_all_buckets():
    buckets = reduce_inputs(torch.arange(1, 4097)[:, None]).argmax(1)
    assert torch.bincount(buckets, minlength=256).tolist() == pytest.approx([16] * 256, abs=3)


@pytest.mark.parametrize(
    "inputs", ["text", {"a": "b"}, torch.tensor(1.0), torch.ones(2, 1, 1, 1, 1, 1), 1j * torch.ones(2)]
)
def test_inputs_that_cannot_be_reduced_are_refused(inputs):
    with pytest.raises(PGEError, match=r"Expected inputs `\[samples, \.\.\.\]` of real numbers"):
        reduce_inputs(inputs)


def test_a_summary_draws_samples_once_and_for_all_and_leaves_the_loader_as_it_was():
    loader = make_loader(0, 100, generator=torch.Generator().manual_seed(3))
    pool, before, state = sample_pool(loader, READ), generators(loader), frozen(torch.get_rng_state())
    few, all_ = (summarise(pool, loader, count) for count in (70, 500))
    assert (len(few.inputs), len(few.classes), len(all_.inputs)) == (70, 70, 100)
    assert torch.equal(few.inputs, all_.inputs[:70])
    inputs, labels, _ = make_data(0, 100).tensors
    order = torch.cdist(all_.inputs, inputs).argmin(1)
    assert sorted(order.tolist()) == list(range(100))
    assert torch.equal(all_.inputs, inputs[order])
    assert torch.equal(all_.classes, labels[order])
    assert (generators(loader), frozen(torch.get_rng_state())) == (before, state)
    with pytest.raises(ValueError, match="`samples` to be at least 1, but got 0"):
        summarise(pool, loader, 0)


@pytest.mark.parametrize("labels", [None, torch.rand(20), torch.ones(20, 3, dtype=torch.long)])
def test_labels_that_are_no_class_numbers_are_left_out(labels):
    data = TensorDataset(torch.ones(20, 3), *([] if labels is None else [labels]))
    loader = DataLoader(data, batch_size=4)
    summary = summarise(sample_pool(loader, READ), loader)
    assert list(summary.tensors()) == ["inputs"]
    with pytest.raises(PGEError, match="Expected a summary with class numbers"):
        _ = summary.classes


def test_the_callback_keeps_no_summary_unless_asked(tmp_path):
    fit(Net(), callbacks=[callback(tmp_path)])
    source = Library(tmp_path).open("mnist")
    assert KIND not in source.extras
    assert source.load_extra(KIND) is None
    with pytest.raises(ValueError, match="`summary` to be 0 or a number of samples, but got -1"):
        PrincipalGradientCallback(str(tmp_path), "mnist", summary=-1)


def test_the_library_keeps_a_summary_through_a_checkpoint_and_until_the_source_is_replaced(tmp_path):
    library, ours = Library(tmp_path), callback(tmp_path, summary=40)
    loader = make_loader()
    fit(Net(), loader, callbacks=[ours])
    expected = summarise(sample_pool(loader, READ), loader, 40)
    library.verify("mnist")
    kept = Summary(**library.open("mnist").load_extra(KIND))
    assert torch.equal(kept.inputs, expected.inputs)
    assert torch.equal(kept.classes, expected.classes)
    other = callback(tmp_path, summary=40)
    other.load_state_dict(ours.state_dict())
    assert other.state_dict()["extras"] == {KIND: library.open("mnist").extras[KIND].file}
    fit(Net(), callbacks=[callback(tmp_path, overwrite=True)])
    assert [path.name for path in (tmp_path / "mnist").iterdir() if path.name.startswith(KIND)] == []


def test_an_interrupted_phase_leaves_no_summary(tmp_path):
    def strike():
        raise KeyboardInterrupt

    class Late(PrincipalGradientCallback):
        def _store(self):
            super()._store()
            strike()

    ours = Late(str(tmp_path), "mnist", probe=TINY, summary=10)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        fit(MinedNet(), callbacks=[ours])
    assert (ours.state_dict()["extras"], Library(tmp_path).names()) == ({}, [])
    assert not list(tmp_path.rglob("*.safetensors"))


def test_a_dev_run_touches_the_summary_and_writes_nothing(tmp_path):
    ours = callback(tmp_path, summary=10)
    fit(Net(), callbacks=[ours], fast_dev_run=True)
    assert len(ours._summary.inputs) == 10
    assert not list(tmp_path.rglob("*.*"))


def test_a_damaged_summary_is_noticed(tmp_path):
    fit(Net(), callbacks=[callback(tmp_path, summary=10)])
    library = Library(tmp_path)
    entry = library.open("mnist").extras[KIND]
    path = tmp_path / "mnist" / entry.file
    path.write_bytes(path.read_bytes()[:-1])
    for read in (lambda: library.verify("mnist"), lambda: library.open("mnist").load_extra(KIND)):
        with pytest.raises(ArtifactError, match="its content differs: damaged"):
            read()
    text = (tmp_path / "mnist" / "source.json").read_text()
    for broken in (text.replace(entry.sha256, "0" * 64), text.replace('"extras": {', '"extras": 1, "other": {')):
        (tmp_path / "mnist" / "source.json").write_text(broken)
        with pytest.raises(ArtifactError, match="damaged ones"):
            library.open("mnist")


def test_only_what_was_stored_as_such_is_registered_as_an_extra(tmp_path):
    source = fit_source(tmp_path)
    library = Library(tmp_path)
    with pytest.raises(ArtifactError, match="Expected a summary, but got a 'encoder' file"):
        library.register("mnist", {}, source.facts, [], overwrite=True, extras={KIND: source.weights_file.file})
    file = library.put_extra("mnist", KIND, {"inputs": torch.ones(2, 2)})
    library.register("mnist", {}, source.facts, [], overwrite=True, extras={KIND: file})
    library.drop_extra("mnist", KIND, {"inputs": torch.ones(2, 2)})
    assert torch.equal(library.open("mnist").load_extra(KIND)["inputs"], torch.ones(2, 2))


def fit_source(folder):
    ours = callback(folder, probe=replace(TINY, restarts=1))
    fit(Net(), callbacks=[ours])
    return ours.source

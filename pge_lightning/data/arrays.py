"""Base of all data modules whose samples fit into memory."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import lightning as L
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset
from typing_extensions import override

from pge_lightning.data.subsets import (
    check_part,
    class_table,
    draw_per_class,
    draw_total,
    part_slice,
    renumber,
    shuffled,
)
from pge_lightning.data.transforms import check_transform, transform_images
from pge_lightning.errors import PGEError

__all__ = ["ArrayDataModule", "Arrays"]

HOLD_OUT_SEED = 0


@dataclass(frozen=True)
class Arrays:
    """A data set as it is stored.

    Args:
        train_x: Training samples, ``[samples, ...]``.
        train_y: Their labels, int64 ``[samples]``, 0 to ``num_classes - 1``.
        test_x: Test samples.
        test_y: Their labels.
        num_classes: Number of classes, whether or not each has samples.

    Raises:
        ValueError: If a split is empty, or its labels do not fit.
    """

    train_x: Tensor
    train_y: Tensor
    test_x: Tensor
    test_y: Tensor
    num_classes: int

    def __post_init__(self) -> None:
        for split, x, y in (("train", self.train_x, self.train_y), ("test", self.test_x, self.test_y)):
            if not len(x) == len(y) > 0:
                raise ValueError(f"Expected one label per {split} sample, but got {len(x)} samples, {len(y)} labels.")
            if y.dtype != torch.int64 or y.min() < 0 or y.max() >= self.num_classes:
                raise ValueError(
                    f"Expected int64 {split} labels from 0 to {self.num_classes - 1}, "
                    f"but got {y.dtype} from {y.min()} to {y.max()}."
                )


@dataclass(frozen=True)
class _Splits:
    train: TensorDataset
    val: TensorDataset
    test: TensorDataset
    unlabelled: TensorDataset
    num_classes: int


class ArrayDataModule(L.LightningDataModule, ABC):
    """Batches ``(x, y)`` of a data set in memory. A subclass says how it is loaded in ``load_arrays``.

    The options work in this order: part, classes, hold-out, few labels, transformation, shuffled labels. All draws are
    fixed by their seeds: the same options give the same samples on every machine and in every process.

    Validation runs on the test split unless ``val_fraction`` is above zero: few labels are for training.

    Args:
        batch_size: Samples per batch. A last training batch that is not full is dropped, if it is not the only one.
        labels: Train on this many samples in all; ``None`` takes all. Not stratified.
        labels_per_class: Train on at most this many samples of each class; ``None`` takes all.
        draw: Which of the fixed draws of few labels; a smaller draw is contained in a larger one.
        classes: Keep only these original classes, renumbered in this order, in all splits.
        permute_classes: Seed of a random renumbering of the classes; ``None`` keeps the numbers.
        val_fraction: Fraction of the training split to hold out for validation before few labels are drawn.
        transform: Name of a transformation of the images; see ``TRANSFORMS``.
        part: Use only this part of the training split, as two fractions of its stored order.
        shuffle_labels: Seed for shuffling the training labels among the samples, as a control; ``None`` does not.
        num_workers: Worker processes of each loader.

    Raises:
        ValueError: If an option is out of its range, or does not fit the data (at ``setup``).
    """

    def __init__(
        self,
        *,
        batch_size: int = 64,
        labels: int | None = None,
        labels_per_class: int | None = None,
        draw: int = 0,
        classes: Sequence[int] | None = None,
        permute_classes: int | None = None,
        val_fraction: float = 0.0,
        transform: str | None = None,
        part: Sequence[float] | None = None,
        shuffle_labels: int | None = None,
        num_workers: int = 0,
    ) -> None:
        super().__init__()
        counts = {"batch_size": batch_size, "labels": labels, "labels_per_class": labels_per_class}
        for field, value in counts.items():
            if value is not None and value < 1:
                raise ValueError(f"Expected `{field}` to be at least 1, but got {value}.")
        if labels is not None and labels_per_class is not None:
            raise ValueError("Expected `labels` or `labels_per_class`, but got both. Leave one of them out.")
        if not 0 <= val_fraction < 1:
            raise ValueError(f"Expected `val_fraction` to be at least 0 and below 1, but got {val_fraction}.")
        if transform is not None:
            check_transform(transform)
        self.batch_size = batch_size
        self.labels = labels
        self.labels_per_class = labels_per_class
        self.draw = draw
        self.classes = classes
        self.permute_classes = permute_classes
        self.val_fraction = val_fraction
        self.transform = transform
        self.part = None if part is None else check_part(part)
        self.shuffle_labels = shuffle_labels
        self.num_workers = num_workers
        self._splits: _Splits | None = None

    @abstractmethod
    def load_arrays(self) -> Arrays:
        """Read the data set as it is stored; images as float32 in [-1, 1]."""

    @property
    def num_classes(self) -> int:
        """Number of classes in use; known after ``setup``."""
        return self._ready().num_classes

    @property
    def num_train(self) -> int:
        """Number of training samples in use; known after ``setup``."""
        return len(self._ready().train)

    @override
    def setup(self, stage: str | None = None) -> None:
        if self._splits is None:
            self._splits = self._prepare(self.load_arrays())

    @override
    def train_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        return self._loader(self._ready().train, training=True)

    @override
    def val_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        return self._loader(self._ready().val)

    @override
    def test_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        return self._loader(self._ready().test)

    def unlabelled_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        """Inputs alone, of all training samples that are not held out, whether or not their labels are drawn.

        Returns:
            A loader of batches ``(x,)``.
        """
        return self._loader(self._ready().unlabelled)

    def _ready(self) -> _Splits:
        if self._splits is None:
            raise PGEError("Expected the data to be loaded, but `setup` has not run. Call `datamodule.setup()` first.")
        return self._splits

    def _loader(self, split: TensorDataset, training: bool = False) -> DataLoader[tuple[Tensor, ...]]:
        return DataLoader(
            split,
            batch_size=self.batch_size,
            shuffle=training,
            drop_last=training and len(split) > self.batch_size,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
        )

    def _prepare(self, arrays: Arrays) -> _Splits:
        table = class_table(arrays.num_classes, self.classes, self.permute_classes)
        whole = slice(None) if self.part is None else part_slice(len(arrays.train_y), self.part)
        x, y = renumber(arrays.train_x[whole], arrays.train_y[whole], table)
        test = self._dataset(*renumber(arrays.test_x, arrays.test_y, table))
        order = shuffled(len(y), HOLD_OUT_SEED)
        held = round(self.val_fraction * len(y))
        if held == len(y):
            raise ValueError(
                f"Expected training samples, but part, classes and val_fraction leave none of {len(arrays.train_y)}. "
                "Widen one of them."
            )
        val = self._dataset(x[order[:held]], y[order[:held]]) if held else test
        pool = order[held:].sort().values
        used = pool[self._draw(y[pool])]
        labels = y[used]
        if self.shuffle_labels is not None:
            labels = labels[shuffled(len(labels), self.shuffle_labels)]
        train = self._dataset(x[used], labels)
        unlabelled = TensorDataset(train.tensors[0]) if torch.equal(used, pool) else self._dataset(x[pool])
        return _Splits(train, val, test, unlabelled, int(table.max()) + 1)

    def _draw(self, y: Tensor) -> Tensor:
        if self.labels is not None:
            return draw_total(y, self.labels, self.draw)
        if self.labels_per_class is not None:
            return draw_per_class(y, self.labels_per_class, self.draw)
        return torch.arange(len(y))

    def _dataset(self, x: Tensor, *labels: Tensor) -> TensorDataset:
        return TensorDataset(x if self.transform is None else transform_images(x, self.transform), *labels)

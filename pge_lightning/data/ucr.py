"""Time series of the UCR archive."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F
from typing_extensions import override

from pge_lightning.data.arrays import ArrayDataModule, Arrays
from pge_lightning.data.files import find_file, read_npz
from pge_lightning.data.subsets import shuffled

__all__ = ["UCR", "normalise_series"]

MERGE_SEED = 0


class UCR(ArrayDataModule):
    """One data set of univariate series, float32 ``[1, length]``, from ``<root>/ucr/<name>.npz``.

    Each series is brought to mean 0 and standard deviation 1, as usual with this archive (Dau et al. 2019).

    Args:
        name: Name of the data set: its file without the suffix.
        root: Folder that holds ``ucr``.
        length: Resample every series linearly to this many points; ``None`` keeps the length.
        merge: Train on the archive's test split, too: for sources, whose official training splits may be tiny. Hold
            some out for validation with ``val_fraction``, for the test split is then no test.
        **options: See ``ArrayDataModule``.

    Raises:
        FileNotFoundError: If folder or file is missing (at ``setup``); the message lists the names that are there.
        ValueError: If ``length`` is below 2, or the file is damaged or does not hold series (at ``setup``).
    """

    name: str

    def __init__(self, name: str, root: str, length: int | None = None, merge: bool = False, **options: Any) -> None:
        super().__init__(**options)
        if length is not None and length < 2:
            raise ValueError(f"Expected `length` to be at least 2, but got {length}.")
        self.name = name
        self.root = root
        self.length = length
        self.merge = merge

    @override
    def load_arrays(self) -> Arrays:
        fields = read_npz(find_file(self.root, "ucr", self.name, ".npz"))
        train_x, test_x = self._series(fields["train_x"]), self._series(fields["test_x"])
        train_y, test_y = (torch.from_numpy(fields[key].astype(np.int64)) for key in ("train_y", "test_y"))
        if self.merge:
            # Splits may differ in how they were recorded: a part of the merged one must not be one of them.
            order = shuffled(len(train_y) + len(test_y), MERGE_SEED)
            train_x, train_y = torch.cat([train_x, test_x])[order], torch.cat([train_y, test_y])[order]
        return Arrays(train_x, train_y, test_x, test_y, num_classes=len(fields["classes"]))

    def _series(self, values: NDArray[np.generic]) -> Tensor:
        if not np.issubdtype(values.dtype, np.floating) or values.ndim != 2:
            raise ValueError(
                f"Expected floating point series [samples, length], but got {values.dtype} of shape "
                f"{list(values.shape)}."
            )
        series = torch.from_numpy(values.astype(np.float32)).unsqueeze(1)
        if self.length is not None:
            series = F.interpolate(series, size=self.length, mode="linear", align_corners=True)
        return normalise_series(series)


def normalise_series(series: Tensor) -> Tensor:
    """Bring each series to mean 0 and standard deviation 1; constant series become 0.

    Args:
        series: Floating point ``[..., length]``.

    Returns:
        A tensor of the same shape.

    Example:
        >>> normalise_series(torch.tensor([[1.0, 3.0], [5.0, 5.0]])).tolist()
        [[-1.0, 1.0], [0.0, 0.0]]
    """
    centred = series - series.mean(-1, keepdim=True)
    spread = centred.square().mean(-1, keepdim=True).sqrt()
    return centred / torch.where(spread > 0, spread, 1)

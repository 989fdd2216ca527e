"""Grey images of 28x28 pixels: MNIST and its relatives."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from typing_extensions import override

from pge_lightning.data.arrays import ArrayDataModule, Arrays
from pge_lightning.data.files import find_file, read_npz

__all__ = ["Gray28"]


class Gray28(ArrayDataModule):
    """One data set of grey images, float32 ``[1, 28, 28]`` in [-1, 1], from ``<root>/gray28/<name>.npz``.

    Args:
        name: Name of the data set: its file without the suffix.
        root: Folder that holds ``gray28``.
        **options: See ``ArrayDataModule``.

    Raises:
        FileNotFoundError: If folder or file is missing (at ``setup``); the message lists the names that are there.
        ValueError: If the file is damaged or does not hold grey images (at ``setup``).
    """

    name: str

    def __init__(self, name: str, root: str, **options: Any) -> None:
        super().__init__(**options)
        self.name = name
        self.root = root

    @override
    def load_arrays(self) -> Arrays:
        fields = read_npz(find_file(self.root, "gray28", self.name, ".npz"))
        return Arrays(
            train_x=_images(fields["train_x"]),
            train_y=torch.from_numpy(fields["train_y"].astype(np.int64)),
            test_x=_images(fields["test_x"]),
            test_y=torch.from_numpy(fields["test_y"].astype(np.int64)),
            num_classes=len(fields["classes"]),
        )


def _images(pixels: NDArray[np.generic]) -> Tensor:
    if pixels.dtype != np.uint8 or pixels.ndim != 3:
        raise ValueError(
            f"Expected uint8 images [samples, height, width], but got {pixels.dtype} of shape {list(pixels.shape)}."
        )
    return (torch.from_numpy(pixels).unsqueeze(1).float() / 255 - 0.5) / 0.5

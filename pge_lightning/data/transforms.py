"""Deterministic transformations of images: each makes another real data set out of one."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["TRANSFORMS", "check_transform", "transform_images"]

PIXEL_SEED = 0


def check_transform(name: str) -> None:
    """Refuse a name that is not in the registry.

    Args:
        name: Name of a transformation.

    Raises:
        ValueError: If there is no such transformation; the message lists those there are.
    """
    if name not in TRANSFORMS:
        raise ValueError(f"Expected `transform` to be one of {sorted(TRANSFORMS)}, but got {name!r}.")


def transform_images(images: Tensor, name: str) -> Tensor:
    """Apply one transformation of the registry to all images alike.

    Args:
        images: ``[samples, channels, height, width]``, floating point in [-1, 1].
        name: Key of ``TRANSFORMS``.

    Returns:
        Images in [-1, 1]; height and width change places under ``rotate90`` and ``transpose``.

    Raises:
        ValueError: If the name is unknown or the tensor does not hold images.

    Example:
        >>> images = torch.tensor([[[[-1.0, 0.0], [0.5, 1.0]]]])
        >>> transform_images(images, "flip").tolist()
        [[[[0.0, -1.0], [1.0, 0.5]]]]
    """
    check_transform(name)
    if images.ndim != 4 or not images.is_floating_point():
        raise ValueError(
            f"Expected images [samples, channels, height, width] for `transform={name}`, but got {images.dtype} of "
            f"shape {list(images.shape)}. Leave `transform` out for series and text."
        )
    return TRANSFORMS[name](images).contiguous()


def _correlate(images: Tensor, kernel: Tensor) -> Tensor:
    # Mirrored borders keep a frame from showing up as an edge.
    margin = kernel.shape[-1] // 2
    padded = F.pad(images.flatten(0, 1).unsqueeze(1), [margin] * 4, mode="reflect")
    return F.conv2d(padded, kernel.to(images)[None, None]).view_as(images)


def _edges(images: Tensor) -> Tensor:
    # Magnitude of the Sobel gradient; a step of half the range is as bright as it gets.
    sobel = torch.tensor([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]])
    magnitude = torch.hypot(_correlate(images, sobel), _correlate(images, sobel.T))
    return (magnitude / 4).clamp(max=1) * 2 - 1


def _blur(images: Tensor) -> Tensor:
    # Binomial filter, close to a Gaussian of one pixel.
    row = torch.tensor([1.0, 4.0, 6.0, 4.0, 1.0]) / 16
    return _correlate(images, torch.outer(row, row))


def _permute_pixels(images: Tensor) -> Tensor:
    height, width = images.shape[-2:]
    places = torch.randperm(height * width, generator=torch.Generator().manual_seed(PIXEL_SEED))
    return images.flatten(2)[..., places].view_as(images)


TRANSFORMS: dict[str, Callable[[Tensor], Tensor]] = {
    "blur": _blur,
    "edges": _edges,
    "flip": lambda images: images.flip(-1),
    "invert": torch.neg,
    "permute_pixels": _permute_pixels,
    "rotate90": lambda images: images.rot90(1, (-2, -1)),
    "rotate180": lambda images: images.rot90(2, (-2, -1)),
    "transpose": lambda images: images.mT,
}

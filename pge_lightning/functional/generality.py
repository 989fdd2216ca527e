"""How near a source is to other data sets in general, from the gaps between a library's sources.

In NumPy: PyTorch would share out so little work among threads, which on a busy machine wait long for each other.
"""

import numpy as np
import torch
from torch import Tensor

__all__ = ["generality"]


def generality(gaps: Tensor) -> Tensor:
    r"""The mean gap of each source to other data sets; lower is nearer to all of them.

    A source has no gap to itself, and a reference that is far from everything would raise the mean of all sources but
    its own. So what counts of a gap is how much it differs from those of other sources to the same reference, as in an
    additive model of sources and references, :math:`\text{gap}_{s,r} = \mu + u_s + v_r`, of which this estimates
    :math:`\mu + u_s`.

    Args:
        gaps: Gap of every source to every reference, ``[sources, references, restarts]``, nan where there is none, as
            of a source to itself.

    Returns:
        ``[sources, restarts]``, of the same range; the mean over all sources where a source has no gap, and 0 where
        none has one.

    Example:
        >>> import torch
        >>> nan = torch.nan
        >>> gaps = torch.tensor([[nan, 0.3, 0.6], [0.3, nan, 0.7], [0.6, 0.7, nan]])
        >>> generality(gaps.unsqueeze(2)).squeeze(1)
        tensor([0.4083, 0.4833, 0.7083])
    """
    values = gaps.numpy()
    own = _mean(values - _mean(values, 0), 1)[:, 0]
    return torch.as_tensor(np.nan_to_num(_mean(values, (0, 1))[0]) + np.nan_to_num(own))


def _mean(values: np.ndarray, axis: int | tuple[int, ...]) -> np.ndarray:
    """The mean of what is not nan, nan where there is none; axes are kept."""
    known = ~np.isnan(values)
    count = known.sum(axis, keepdims=True)
    total = values.sum(axis, where=known, keepdims=True)
    found: np.ndarray = np.divide(total, count, out=np.full_like(total, np.nan), where=count > 0)
    return found

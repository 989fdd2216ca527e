"""Clone: a copy of the user's module that training, logs and other processes never see."""

import copy
from collections.abc import Iterator
from itertools import chain, pairwise
from types import MethodType
from typing import Any, cast

import lightning.pytorch as pl
import torch
from lightning.fabric.utilities.apply_func import convert_to_tensors
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parameter import UninitializedBuffer, is_lazy
from torch.utils._pytree import tree_leaves
from torchmetrics import Metric

from pge_lightning.errors import PGEError
from pge_lightning.isolation.closures import rebind
from pge_lightning.isolation.unwrap import plain

__all__ = ["isolated_copy"]


class _LocalBatchNorm(_BatchNorm):
    """Stands for SyncBatchNorm, for inputs of any number of dimensions, without other processes."""

    def _check_input_dim(self, input: Tensor) -> None:
        pass


def isolated_copy(module: nn.Module) -> nn.Module:
    """A deep copy in float32 that logs nothing and is in training mode, unless single submodules are set otherwise.

    It runs eagerly and by itself: without compilation and wrappers, and without waiting for other processes in batch
    norms, metrics and ``all_gather``.

    Args:
        module: The user's module; it is not touched.

    Returns:
        The copy, on the CPU.

    Raises:
        PGEError: If the module cannot be copied; the message names the attribute.
    """
    module = plain(module)
    _check_memory(module)
    with torch.inference_mode(mode=False):
        clone = _deep_copy(module)
        _check_apart(clone, module)
        clone = clone.cpu().float()
        for tensor in chain(clone.parameters(), clone.buffers()):
            if tensor.is_complex():
                tensor.data = tensor.data.to(torch.complex64)
    if not clone.training:
        clone.train()
    for part in clone.modules():
        _set_apart(part)
    return clone


def _check_memory(module: nn.Module) -> None:
    """Refuse parameters that a copy could not hold as the module does."""
    spans = []
    for name, unit in module.named_parameters():
        if unit.is_meta:
            raise PGEError(
                f"Expected weights in memory, but '{name}' is on the meta device. Call `configure_model()`, or "
                "`to_empty(device=...)` and load its values."
            )
        if not is_lazy(unit) and unit.numel():
            reach = sum((size - 1) * stride for size, stride in zip(unit.shape, unit.stride(), strict=True))
            if reach + 1 == unit.numel():  # without gaps, in which others might lie
                spans.append((unit.data_ptr(), unit.data_ptr() + reach * unit.element_size(), name))
    spans.sort()
    for (_, end, name), (begin, _, other) in pairwise(spans):
        if begin <= end:
            raise PGEError(
                f"Expected every parameter to have memory of its own, but '{name}' and '{other}' overlap, which a copy "
                "would not keep. Tie them: the same `nn.Parameter` under both names."
            )


def _deep_copy(module: nn.Module) -> nn.Module:
    memo = _shared(module)
    try:
        return rebind(copy.deepcopy(module, memo), memo)
    except Exception:  # users' classes raise errors of their own kinds; the second attempt helps with some
        memo = _shared(module) | _values(module)
    try:
        return rebind(copy.deepcopy(module, memo), memo)
    except Exception as error:  # the same
        path = next(_uncopied(module), None)
        where = f" with `{path}`" if path else ""
        raise PGEError(
            f"Expected a module that `copy.deepcopy` can copy, but got {type(module).__name__}{where}: {error}. Make "
            "it where it is used, keep it outside of the module, or give its class a `__deepcopy__`."
        ) from error


def _shared(module: nn.Module) -> dict[int, Any]:
    """What a copy keeps, and buffers without a shape, which PyTorch does not copy."""
    fabrics = [getattr(part, "_fabric", None) for part in module.modules() if isinstance(part, pl.LightningModule)]
    memo: dict[int, Any] = {id(fabric): fabric for fabric in fabrics if fabric is not None}
    for value in module.buffers():
        if isinstance(value, UninitializedBuffer):
            memo[id(value)] = cast(Any, UninitializedBuffer)(value.requires_grad, value.device, value.dtype)
    return memo


def _values(module: nn.Module) -> dict[int, Any]:
    """Results of earlier computations that hang on the module, as values; old weight norm leaves its latest weight."""
    held = chain.from_iterable(tree_leaves(vars(part)) for part in module.modules())
    tensors = (value for value in held if isinstance(value, Tensor) and not is_lazy(value))
    return {id(value): value.detach().clone() for value in tensors if not value.is_leaf}


def _uncopied(module: nn.Module) -> Iterator[str]:
    """Paths of the attributes that cannot be copied, each tried by itself."""
    known = {id(part): part for part in module.modules()} | _values(module)
    for outer, part in module.named_modules():
        state = part.__reduce_ex__(4)[2]  # what a deep copy would look at; Lightning leaves the Trainer out
        for name, value in state.items() if isinstance(state, dict) else ():
            try:
                copy.deepcopy(value, dict(known))
            except Exception:  # the same kinds
                yield f"{outer}.{name}".lstrip(".")


def _check_apart(clone: nn.Module, module: nn.Module) -> None:
    """Refuse a copy that holds tensors of the original, as a ``__deepcopy__`` of the user's may leave it."""
    own = {id(tensor) for tensor in chain(module.parameters(), module.buffers())}
    held = chain(clone.named_parameters(), clone.named_buffers())
    if name := next((name for name, tensor in held if id(tensor) in own), None):
        raise PGEError(
            f"Expected a deep copy to have tensors of its own, but '{name}' is that of the original. Mend the "
            "`__deepcopy__` of the module that holds it."
        )


def _set_apart(part: nn.Module) -> None:
    """Let one module of a copy run by itself."""
    _uncompile(part)
    if isinstance(part, nn.SyncBatchNorm):
        part.__class__ = _LocalBatchNorm  # type: ignore[assignment]  # the same attributes, another forward
    if isinstance(part, Metric):
        part.dist_sync_on_step = part.sync_on_compute = part._to_sync = False
        part.distributed_available_fn = _no
    if isinstance(part, pl.LightningModule):
        vars(part).update(log=_ignore, log_dict=_ignore, all_gather=MethodType(_gather_alone, part))


def _uncompile(part: nn.Module) -> None:
    """Give a copy its own methods back: a compiled one is a closure, which a deep copy leaves at the original."""
    vars(part).pop("_compiled_call_impl", None)
    for name, value in list(vars(part).items()):
        method = getattr(value, "_torchdynamo_orig_callable", None)
        if isinstance(method, MethodType) and type(method.__self__) is type(part):
            vars(part)[name] = MethodType(method.__func__, part)


def _ignore(*_: Any, **__: Any) -> None:
    """Stands where a copy of a module would log."""


def _no() -> bool:
    """Stands where a copy's metric asks for other processes."""
    return False


def _gather_alone(part: pl.LightningModule, data: Any, *_: Any, **__: Any) -> Any:
    """Stands where a copy would gather from all processes: what a single device gives."""
    return convert_to_tensors(data, device=part.device)

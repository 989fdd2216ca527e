"""Sharding: modules whose parameters lie in pieces on several processes cannot be copied, but can be loaded."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from pge_lightning.distributed import rank_and_world
from pge_lightning.errors import PGEError

__all__ = ["check_whole", "load_shards", "sharding", "whole_shapes"]


def sharding(module: nn.Module) -> str:
    """Tell what has cut a module's parameters into pieces.

    Args:
        module: Any module.

    Returns:
        ``"FSDP"``, ``"DTensor"`` (``fully_shard`` and tensor parallelism), ``"DeepSpeed"``; empty if nothing has.
    """
    marks = {"_fsdp_flattened": "FSDP", "device_mesh": "DTensor", "ds_id": "DeepSpeed"}
    found = (kind for unit in module.parameters() for mark, kind in marks.items() if hasattr(unit, mark))
    return next(found, "")


def check_whole(module: nn.Module) -> None:
    """Refuse a module of which this process holds pieces only.

    Args:
        module: The user's module.

    Raises:
        PGEError: If its parameters are sharded.
    """
    if kind := sharding(module):
        raise PGEError(
            f"Expected a module with whole parameters, but those of {type(module).__name__} are sharded ({kind}). "
            "Collect or rank with the unsharded module before it is set up, then load the choice into the sharded one "
            "with `load_encoder`, on every process."
        )


def whole_shapes(module: nn.Module) -> dict[str, torch.Size | None]:
    """Names and shapes of parameters and persistent buffers, as they were before sharding.

    Args:
        module: Any module. Every process must call this if it is sharded by FSDP.

    Returns:
        Name to shape; ``None`` where a lazy module has yet to find it.

    Raises:
        PGEError: If the module lies inside the one that FSDP wraps, or DeepSpeed holds its parameters.
    """
    kind = sharding(module)
    if kind == "DeepSpeed":
        raise PGEError(
            f"Expected a module whose values can be replaced, but those of {type(module).__name__} are DeepSpeed's. "
            "Load the encoder before the module is set up."
        )
    state = _gathered(module) if kind == "FSDP" else module.state_dict(keep_vars=True)
    tensors = {name: value for name, value in state.items() if isinstance(value, Tensor)}
    return {name: None if is_lazy(value) else value.shape for name, value in tensors.items()}


def _gathered(module: nn.Module) -> dict[str, Tensor]:
    from torch.distributed import fsdp  # here, because not every build of PyTorch has it

    fsdp_class = fsdp.FullyShardedDataParallel
    if not fsdp_class.fsdp_modules(module):
        raise PGEError(
            f"Expected the module that FSDP made, but got {type(module).__name__}, which lies inside of it. "
            "Under a Trainer that is `trainer.strategy.model`."
        )
    elsewhere = next(module.parameters()).device.type != "cpu"  # from the CPU to the CPU PyTorch loses the values
    whole = fsdp.FullStateDictConfig(offload_to_cpu=elsewhere)
    with fsdp_class.state_dict_type(module, fsdp.StateDictType.FULL_STATE_DICT, whole):
        state: dict[str, Tensor] = module.state_dict()
    return state


def load_shards(module: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Copy whole values into a sharded module, in place: every process keeps its pieces.

    Args:
        module: A module whose parameters are DTensors, or that FSDP made.
        weights: Name to whole value; rank zero's count where parameters are DTensors.

    Raises:
        PGEError: If this version of Lightning has no tool for it.
    """
    try:
        from lightning.fabric.strategies.model_parallel import _load_raw_module_state
    except ImportError as error:
        raise PGEError(
            "Expected a version of Lightning that loads whole values into sharded modules, as 2.6 does, but got one "
            "without. Install `lightning>=2.6.6,<2.7`, or load the encoder before sharding."
        ) from error
    state: dict[str, Any] = dict(weights)
    _load_raw_module_state(state, module, world_size=rank_and_world()[1], strict=False)

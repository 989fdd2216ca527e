"""Several processes: who does which restart, and how results and failures reach all of them."""

from typing import TypeVar

import torch.distributed as dist

__all__ = ["gather", "rank_and_world"]

T = TypeVar("T")


def rank_and_world() -> tuple[int, int]:
    """This process's rank and the number of processes; (0, 1) without a process group."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def gather(value: T) -> list[T]:
    """The values of all processes, in the order of their ranks; every process must call it."""
    _, world = rank_and_world()
    if world == 1:
        return [value]
    values: list[T | None] = [None] * world
    dist.all_gather_object(values, value)
    return values  # type: ignore[return-value] (all_gather_object has filled every place)

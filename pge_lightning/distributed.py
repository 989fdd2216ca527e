"""Several processes: who does which restart, and how results and failures reach all of them."""

from collections.abc import Callable
from typing import TypeVar

import torch.distributed as dist

from pge_lightning.errors import PGEError

__all__ = ["everywhere", "gather", "rank_and_world"]

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
    return values  # type: ignore[return-value]  # every place has been filled


def everywhere(work: Callable[[], T], distributed: bool = True) -> list[T]:
    """Do a piece of work on every process; where it fails on one, it fails on all instead of leaving them waiting.

    Args:
        work: What this process has to do; its result must pickle.
        distributed: Whether the other processes of the default group call this, too.

    Returns:
        The results of all processes, in the order of their ranks; of this one alone, if it works alone.

    Raises:
        PGEError: If the work fails on any of several processes; the message names the ranks and their errors.
    """
    rank, world = rank_and_world() if distributed else (0, 1)
    if world == 1:
        return [work()]
    results, failure = list[T](), ""
    try:
        results.append(work())
    except Exception as error:  # whatever it is, the other processes must hear of it
        failure = f"Rank {rank}: {error}"
    outcomes = gather((failure, results))
    if failures := [text for text, _ in outcomes if text]:
        raise PGEError(" ".join(failures))
    return [result for _, done in outcomes for result in done]

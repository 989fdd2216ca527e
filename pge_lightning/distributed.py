"""Several processes: who does which restart, how results and failures reach all, and what none may do alone."""

import signal
import threading
import time
import traceback
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar, cast
from weakref import WeakKeyDictionary

import torch.distributed as dist
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from pge_lightning.errors import PGEError

__all__ = ["add_up", "agree", "everywhere", "gather", "no_collectives", "on_rank_zero", "rank_and_world", "terminated"]

T = TypeVar("T")

# A share of restarts may take long, and the others wait for it; a process that died is noticed at once.
_PATIENCE = timedelta(days=7)
_ERRORS: tuple[type[BaseException], ...] = (SIGTERMException, KeyboardInterrupt, SystemExit, PGEError)
_NAMESPACES = ("c10d", "_c10d_functional", "c10d_functional")
_terminations: list[int] = []
_own_groups: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()


def rank_and_world() -> tuple[int, int]:
    """This process's rank and the number of processes; (0, 1) without a process group."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def _own_group() -> Any:
    """A group of our own, made where all processes meet for the first time."""
    # On a signal Lightning broadcasts through the default group, in the middle of whatever the process is doing: what
    # we say to each other there could be taken for it.
    default = dist.group.WORLD
    if default not in _own_groups:
        available = dist.is_gloo_available()
        _own_groups[default] = dist.new_group(backend="gloo", timeout=_PATIENCE) if available else None
    return _own_groups[default]


def gather(value: T) -> list[T]:
    """The values of all processes, in the order of their ranks; every process must call it.

    Args:
        value: What this process has to say; it must pickle.

    Returns:
        One value per process.

    Raises:
        PGEError: If a process has died.
    """
    return _exchange(lambda: value)


def _exchange(speak: Callable[[], T]) -> list[T]:
    """What all processes have to say once they have met."""
    _, world = rank_and_world()
    if world == 1:
        return [speak()]
    values: list[T | None] = [None] * world
    with _meeting() as group:
        dist.all_gather_object(values, speak(), group=group)
    return values  # type: ignore[return-value]  # every place has been filled


@contextmanager
def _meeting() -> Generator[Any]:
    """Wait for the other processes, open to signals: a handler may need all of them to answer."""
    try:
        group = _own_group()
        arrival = dist.barrier(group=group, async_op=True)
        while not arrival.is_completed():
            time.sleep(0.005)
        arrival.wait()
        yield group
    except RuntimeError as error:
        raise PGEError(
            f"Expected all {dist.get_world_size()} processes to go on together, but rank {dist.get_rank()} lost "
            f"contact: {error}. See the output of the process that ended first."
        ) from error


def agree(work: Callable[[], T], distributed: bool = True) -> T:
    """Do a piece of work on every process; where it fails on one, it fails on all instead of leaving them waiting.

    Args:
        work: What this process has to do. It must not communicate: another process may have failed before it does.
        distributed: Whether the other processes of the default group call this, too.

    Returns:
        The result of this process.

    Raises:
        PGEError: If the work fails on any of several processes; the message names the ranks and their errors.
        BaseException: The interruption itself where it hit, and one of its kind elsewhere.
    """
    if not distributed or rank_and_world()[1] == 1:
        return work()
    failure: BaseException | None = None
    with _holding_termination():
        try:
            result = work()
        except BaseException as error:  # whatever it is, the other processes must hear of it before they wait
            failure = error
        try:
            outcomes = _exchange(lambda: _described(_termination(failure)))
        except PGEError as lost:
            raise failure or lost from lost
    if failure is not None and not isinstance(failure, Exception):
        raise failure
    if words := " ".join(f"Rank {rank}: {text}" for rank, (_, text) in enumerate(outcomes) if text):
        raise _ERRORS[min(kind for kind, _ in outcomes)](words) from failure
    return result


def terminated() -> bool:
    """Whether SIGTERM has come while processes work towards an agreement; then the work should end soon."""
    return bool(_terminations)


@contextmanager
def _holding_termination() -> Generator[None]:
    """Keep SIGTERM from Lightning's handler, which waits for all processes while they are at work of their own."""
    handler = signal.getsignal(signal.SIGTERM)
    if not callable(handler) or threading.current_thread() is not threading.main_thread():
        yield
        return
    signal.signal(signal.SIGTERM, lambda number, _: _terminations.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, handler)
        late = terminated()
        _terminations.clear()
    if late:
        signal.raise_signal(signal.SIGTERM)


def _termination(failure: BaseException | None) -> BaseException | None:
    """What went wrong here, be it that SIGTERM has come: from now on the others know."""
    come = terminated()
    _terminations.clear()
    return SIGTERMException() if failure is None and come else failure


def _described(failure: BaseException | None) -> tuple[int, str]:
    """Which of the errors stands for this one on other processes, and its text."""
    kind = next((i for i, kind in enumerate(_ERRORS) if isinstance(failure, kind)), len(_ERRORS) - 1)
    if failure is None or isinstance(failure, PGEError):
        return kind, str(failure or "")
    return kind, f"{type(failure).__name__}: {failure}".rstrip(": ")


def everywhere(work: Callable[[], T], distributed: bool = True) -> list[T]:
    """Do a piece of work on every process and bring the results together; where one fails, all fail.

    Args:
        work: As in :func:`agree`; its result must pickle.
        distributed: Whether the other processes of the default group call this, too.

    Returns:
        The results of all processes, in the order of their ranks; of this one alone, if it works alone.
    """
    result = agree(work, distributed)
    return gather(result) if distributed else [result]


def on_rank_zero(work: Callable[[], T], distributed: bool = True) -> T:
    """Do a piece of work on rank zero only; its result, or its error, reaches every process.

    Args:
        work: As in :func:`agree`; its result must pickle.
        distributed: Whether the other processes of the default group call this, too.

    Returns:
        The result of rank zero.
    """
    rank, world = rank_and_world() if distributed else (0, 1)
    result = agree(lambda: work() if rank == 0 else None, distributed)
    if world > 1:
        results = [result]
        with _meeting() as group:
            dist.broadcast_object_list(results, src=0, group=group)
        result = results[0]
    return cast(T, result)


def add_up(tensors: Iterable[Tensor]) -> None:
    """Replace tensors by their sums over all processes, in place.

    Args:
        tensors: On the CPU, of the same shapes everywhere; every process must call this.
    """
    if rank_and_world()[1] > 1:
        with _meeting() as group:
            for tensor in tensors:
                dist.all_reduce(tensor, group=group)


class _Refusal(TorchDispatchMode):  # type: ignore[no-untyped-call]  # PyTorch leaves it untyped
    """Sees every operator right before it runs."""

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func.namespace in _NAMESPACES and not _handles_signal():
            raise PGEError(
                f"Expected a training step that one process can take alone, but it communicates with the others "
                f"through `{func}`. Each process runs whole restarts by itself: give a `loss_fn` without it, or "
                "collect in one process before `fit`, with `collect_signature` or `SourceSelector`."
            )
        return func(*args, **(kwargs or {}))


def _handles_signal() -> bool:
    """Whether a signal has interrupted the work: what its handler does, as Lightning's, is not the work's."""
    handlers = [signal.getsignal(number) for number in signal.valid_signals()]
    known = {getattr(handler, "__code__", getattr(type(handler).__call__, "__code__", None)) for handler in handlers}
    frames = (frame.f_code for frame, _ in traceback.walk_stack(None))
    return any(code in known for code in frames)


@contextmanager
def no_collectives(watch: bool = True) -> Generator[None]:
    """Refuse to wait for other processes inside, forward or backward: they are at other work and would never come.

    Args:
        watch: Whether to look at all; it costs some microseconds per operator. Without other processes nothing is
            looked at.

    Yields:
        Nothing.
    """
    if not watch or rank_and_world()[1] == 1:
        yield
        return
    with _Refusal():  # type: ignore[no-untyped-call]  # PyTorch leaves it untyped
        yield

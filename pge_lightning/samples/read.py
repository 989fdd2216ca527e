"""Read: a pool of samples from whatever holds them, without moving any of it."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from functools import partial
from itertools import islice
from typing import Any, TypeAlias

from torch.utils.data import DataLoader, IterableDataset

from pge_lightning.distributed import agree, everywhere
from pge_lightning.errors import PGEError
from pge_lightning.isolation import borrowed, derive_seed, isolated_randomness
from pge_lightning.isolation.reach import reachable
from pge_lightning.probe import Probe
from pge_lightning.samples.batches import BatchColumns
from pge_lightning.samples.containers import combination, combine, limits_of
from pge_lightning.samples.loaders import NumberedSamples, has_own_iterator, length, unwrapped, visited, without_workers
from pge_lightning.samples.pool import SamplePool
from pge_lightning.samples.streams import SampleList, spared

__all__ = ["sample_pool"]

Reading: TypeAlias = Callable[[bool], SamplePool]

# Where a stream has shown no end, and the probe no need of one.
_ENDLESS = 100_000


def sample_pool(
    data: DataLoader[Any] | Iterable[Any], probe: Probe, limit: int | None = None, distributed: bool = False
) -> SamplePool:
    """Give random access to the samples that training would see.

    A loader over a map-style data set is not iterated: its sampler says which samples belong to it, and these are
    read from the data set in this process. Streams and other iterables are read once, up to the probe's largest rung:
    from a copy, or put back to their state, or refused. A loader's stream is read sample by sample, in this process
    and as without workers, so that the number of workers changes nothing. Samplers, generators, attributes of data
    sets and persistent workers are left as they were.

    Args:
        data: A ``DataLoader``, any iterable of batches, or several of them as Lightning combines them.
        probe: Tells how many samples are of use.
        limit: Most batches of each loader to consider, as the Trainer limits them.
        distributed: Whether all processes of the default group take part, each with its share of the samples.

    Returns:
        The pool.

    Raises:
        PGEError: If there are fewer samples than one batch of the probe, batches cannot be taken apart, or a stream
            cannot be read without taking it away from training.
    """
    combined = combination(data)
    parts = (
        [(data, limit)] if combined is None else list(zip(combined.flattened, limits_of(combined, limit), strict=True))
    )
    with isolated_randomness(derive_seed(probe.seed, "pool")), ExitStack() as later, borrowed(data):
        # All copies come first: where one is refused, nothing has been read.
        readings = agree(lambda: [_reading(part, most, probe, later) for part, most in parts], distributed)
        pools = [read(distributed) for read in readings]
    pool = pools[0] if combined is None else combine(combined, pools)
    if len(pool) < probe.batch_size:
        raise PGEError(
            f"Expected at least one batch of {probe.batch_size} samples, but the training data holds {len(pool)}. "
            "Give more data, or collect sources and target with a smaller `batch_size` of the probe."
        )
    return pool


def _reading(data: Any, limit: int | None, probe: Probe, later: ExitStack) -> Reading:
    """Choose how to read a loader, and copy what must not be read itself."""
    data, most = unwrapped(data), max(probe.budgets, default=None)
    if most is None and limit is None and length(data) is None:
        most = _ENDLESS
    if not isinstance(data, DataLoader) or has_own_iterator(data):
        source = _opened(data, later)
        return partial(_in_order, BatchColumns(), lambda: islice(iter(source), limit), most, probe)
    dataset: Any = data.dataset
    streams = isinstance(dataset, IterableDataset)
    if not streams and data.batch_sampler is not None:
        return partial(_by_number, data, limit)
    source = _stream(spared(dataset, later), data.num_workers) if streams else (dataset[i] for i in data.sampler)
    if data.batch_size is None:
        return partial(_in_order, BatchColumns(), lambda: map(data.collate_fn, islice(source, limit)), most, probe)
    samples = None if limit is None else limit * data.batch_size
    return partial(_in_order, SampleList(data.collate_fn), lambda: islice(source, samples), most, probe)


def _by_number(loader: DataLoader[Any], limit: int | None, distributed: bool) -> SamplePool:
    shares = everywhere(lambda: visited(loader, limit), distributed)
    return NumberedSamples(loader, sorted(set().union(*shares)))


def _in_order(
    pool: SampleList | BatchColumns,
    items: Callable[[], Iterator[Any]],
    most: int | None,
    probe: Probe,
    distributed: bool,
) -> SamplePool:
    """Read samples or batches as they come; every process as many as the one that has fewest."""
    sizes = everywhere(lambda: pool.read(items(), most), distributed)
    if not probe.budgets and min(sizes) >= _ENDLESS == most:
        raise PGEError(
            f"Expected an end of the training data, but there was none after {min(sizes)} samples. Limit the batches, "
            f"or give probe '{probe.name}' sample `budgets`."
        )
    return pool.part(range(min(sizes)))


def _opened(data: Any, later: ExitStack) -> Any:
    """Batches to read in place of a loader's own."""
    if isinstance(data, (list, tuple)) or (isinstance(data, Iterator) and not hasattr(data, "__dict__")):
        return data
    source = spared(data, later)
    for part in reachable(source) if source is not data else ():
        if isinstance(part, DataLoader):
            without_workers(part)
    return source


def _stream(stream: Any, workers: int) -> Iterator[Any]:
    """The samples of a stream, as one process alone would read it."""
    try:
        yield from stream
    except Exception as error:  # of any kind: it is the user's own code
        if not workers:
            raise
        raise PGEError(
            f"Expected a {type(stream).__name__} that can be read without workers, where `get_worker_info()` is None "
            f"and no `worker_init_fn` has run, but got {type(error).__name__}: {error}. Let it give all its samples "
            "then, or collect from other batches before `fit`."
        ) from error

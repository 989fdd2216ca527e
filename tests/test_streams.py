"""Streams: what can be read only once or in order is not taken away from the training that follows."""

import itertools
import socket
import threading
from contextlib import ExitStack
from functools import partial

import lightning.pytorch as pl
import numpy as np
import pytest
from lightning.pytorch.callbacks import Callback
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from helpers import TINY as PROBE
from pge_lightning.collect import collect_signature
from pge_lightning.errors import PGEError
from pge_lightning.probe import Probe
from pge_lightning.samples import sample_pool
from pge_lightning.samples.streams import spared
from trainer_helpers import QUIET, Net, callback, differing, logger, make_data, trace

DATA = make_data()
ROWS = [*range(64)] * 3
ALL = Probe(name="all", restarts=2, steps=2, batch_size=8, budgets=())


class Reader:
    """Something between a stream and what it reads."""

    def __init__(self, rows):
        self.parts = {"rows": [rows]}


class Going(IterableDataset):
    """Goes on where it stopped: its iterator lies some levels down."""

    def __init__(self, rows):
        self.reader = Reader(rows)

    def __iter__(self):
        return (DATA[int(i)] for i in self.reader.parts["rows"][0])


class Bound(IterableDataset):
    """Reads through a partial, whose iterator goes on."""

    def __init__(self):
        self.read = partial(next, iter(ROWS), None)

    def __iter__(self):
        return (DATA[i] for i in iter(self.read, None))


class Shuffled(IterableDataset):
    """Shuffles its own order in place, and mixes another data set's samples with a generator of its own."""

    def __init__(self):
        self.order, self.rng, self.passes, self.source = np.arange(64), np.random.default_rng(0), 0, DATA

    def __iter__(self):
        self.passes += 1
        self.rng.shuffle(self.order)
        for i in self.order:
            x, y, number = self.source[int(i)]
            yield x + float(self.rng.normal()), y, number


class Own:
    """Any iterable of batches, with a position."""

    def __init__(self):
        self.batches = iter([DATA[at : at + 16] for at in range(0, 64, 16)] * 4)

    def __iter__(self):
        return itertools.islice(self.batches, 3)


class Lines(IterableDataset):
    """Reads an open file, and can say and set where it is."""

    def __init__(self, path):
        self.file, self.lock = open(path), threading.Lock()  # ruff: ignore[open-file-with-context-handler] (the stream keeps it open)

    def __iter__(self):
        for line in iter(self.file.readline, ""):
            yield DATA[int(line)]

    def state_dict(self):
        return {"offset": self.file.tell()}

    def load_state_dict(self, state):
        self.file.seek(state["offset"])


class Noting(Lines):
    """Starts anew at every pass, unless a state that was loaded says where."""

    def __init__(self, path):
        super().__init__(path)
        self.offset = self.begin = 0

    def __iter__(self):
        self.file.seek(self.begin)
        self.begin = 0
        for line in iter(self.file.readline, ""):
            self.offset = self.file.tell()
            yield DATA[int(line)]

    def state_dict(self):
        return {"offset": self.offset, "file": self.file.tell()}

    def load_state_dict(self, state):
        self.begin = self.noted = state["offset"]
        self.file.seek(state["file"])


def batched(stream, **options):
    return DataLoader(stream, **{"batch_size": 16, **options})


class Together(Going):
    """Gives whole batches."""

    def __iter__(self):
        return (DATA[list(rows)] for rows in self.reader.parts["rows"][0])


STREAMS = {
    "an iterator": lambda path: batched(Going(iter(ROWS))),
    "an iterator within others": lambda path: batched(Going(map(int, map(str, ROWS)))),
    "no end": lambda path: batched(Going(itertools.cycle(range(64)))),
    "a partial": lambda path: batched(Bound()),
    "an order shuffled in place": lambda path: batched(Shuffled()),
    "batches of its own": lambda path: batched(
        Together(iter([ROWS[at : at + 8] for at in range(0, 192, 8)])), batch_size=None
    ),
    "an iterable of batches": lambda path: Own(),
    "a file": lambda path: batched(Lines(path)),
    "a file and a note": lambda path: batched(Noting(path)),
    "a worker": lambda path: batched(Going(iter(ROWS)), num_workers=1, persistent_workers=True),
}


@pytest.fixture
def numbers(tmp_path):
    path = tmp_path / "numbers"
    path.write_text("\n".join(map(str, ROWS)) + "\n")
    return path


def run(make, folder, path, extra=()):
    """Two epochs of three batches; what they leave behind, and what else is left to read."""
    pl.seed_everything(1, verbose=False)
    module, data = Net(), make(path)
    trainer = pl.Trainer(
        **QUIET,
        max_epochs=2,
        limit_train_batches=3,
        enable_checkpointing=False,
        logger=logger(folder),
        callbacks=list(extra),
    )
    trainer.fit(module, data)
    seen = [number for batch in module.seen for number in batch]
    return trace(trainer, module, data), seen, [batch[2].tolist() for batch in itertools.islice(data, 4)]


@pytest.mark.filterwarnings("ignore:.*itertools.*:DeprecationWarning")
@pytest.mark.parametrize("kind", STREAMS)
def test_training_sees_the_same_stream(kind, numbers, tmp_path):
    ours = callback(tmp_path / "library")
    expected, seen, rest = run(STREAMS[kind], tmp_path / "without", numbers)
    found, *others = run(STREAMS[kind], tmp_path / "with", numbers, [ours])
    assert differing(expected, found) == []
    assert others == [seen, rest]
    assert len(ours.signatures) == 1
    assert len(set(seen)) >= 32


class Reading(Callback):
    """Reads the training data as if nothing depended on it."""

    def on_train_start(self, trainer, pl_module):
        next(iter(trainer.train_dataloader))


@pytest.mark.parametrize(
    "kind", ["an iterator", "a partial", "an order shuffled in place", "an iterable of batches", "a file"]
)
def test_the_comparison_notices_a_reader(kind, numbers, tmp_path):
    expected = run(STREAMS[kind], tmp_path / "without", numbers)
    assert run(STREAMS[kind], tmp_path / "with", numbers, [Reading()])[1:] != expected[1:]


def held(pool):
    return pool.batch(range(len(pool)))[2].tolist()


def test_a_stream_is_read_in_its_order_up_to_the_largest_rung():
    rows = iter(ROWS)
    assert held(sample_pool(batched(Going(rows)), PROBE)) == ROWS[:64]
    assert next(rows) == 0
    assert held(sample_pool(batched(Going(rows)), PROBE, limit=2)) == ROWS[1:33]
    assert held(sample_pool(batched(Going(rows)), ALL)) == ROWS[1:]


@pytest.mark.parametrize("options", [{}, {"num_workers": 1}, {"num_workers": 2, "persistent_workers": True}])
def test_the_number_of_workers_changes_nothing(options):
    class Sharded(IterableDataset):
        def __iter__(self):
            info = get_worker_info()
            return (DATA[i] for i in range(info.id if info else 0, 64, info.num_workers if info else 1))

    def configure(number):
        raise AssertionError("a worker was started")

    loader = batched(Sharded(), worker_init_fn=configure, drop_last=True, **options)
    pool = sample_pool(loader, PROBE)
    assert held(pool) == list(range(64))
    assert pool.fingerprint() == sample_pool(batched(DATA), PROBE).fingerprint()


def test_a_stream_that_needs_workers_is_an_error():
    class Configured(IterableDataset):
        def __iter__(self):
            return (DATA[i] for i in range(get_worker_info().id, 64))

    with pytest.raises(PGEError, match=r"Configured that can be read without workers.*AttributeError: .*Let it give"):
        sample_pool(batched(Configured(), num_workers=2), PROBE)
    with pytest.raises(AttributeError):
        sample_pool(batched(Configured()), PROBE)


def closed_over():
    rows = iter(ROWS)

    class Enclosing(IterableDataset):
        def __init__(self):
            self.read = lambda: next(rows)

        def __iter__(self):
            return (DATA[self.read()] for _ in range(64))

    return Enclosing(), lambda: list(rows) == ROWS


def generating():
    rows = (number for number in ROWS)
    return Going(rows), lambda: list(rows) == ROWS


def listening():
    one, other = socket.socketpair()
    other.sendall(b"12")

    def unread():
        found = one.recv(2)
        one.close(), other.close()
        return found == b"12"

    return Going(one), unread


def hiding():
    class Hidden:
        def __init__(self, owner):
            self.owner, self.rows = owner, (number for number in ROWS)

    stream = Going(None)
    stream.hidden = Hidden(stream)
    return stream, lambda: list(stream.hidden.rows) == ROWS


def unwilling():
    class Unwilling(Going):
        def __deepcopy__(self, memo):
            raise NotImplementedError

    rows = iter(ROWS)
    return Unwilling(rows), lambda: list(rows) == ROWS


REFUSED = {
    "a loop": (hiding, r"`Going\.hidden\.rows` is a generator"),
    "a class's own will": (unwilling, r"`Unwilling` is a Unwilling"),
    "a generator": (generating, r"`Going\.reader\.parts\['rows'\]\[0\]` is a generator"),
    "a socket": (listening, r"`Going\.reader\.parts\['rows'\]\[0\]` is a socket"),
    "a closure": (closed_over, r"`Enclosing, <lambda>'s rows` is a list_iterator"),
}


@pytest.mark.parametrize("wrap", [batched, lambda stream: [batched(DATA), batched(stream)], lambda stream: stream])
@pytest.mark.parametrize("kind", REFUSED)
def test_what_has_no_copy_is_refused_unread(kind, wrap):
    make, message = REFUSED[kind]
    stream, unread = make()
    with pytest.raises(PGEError, match=message + r", which has no copy\. Make it anew in `__iter__`, or give"):
        sample_pool(wrap(stream), PROBE)
    assert unread()


def test_a_refused_file_is_where_it_was(numbers):
    with open(numbers) as file:
        with pytest.raises(PGEError, match="is a TextIOWrapper"):
            sample_pool(batched(Going(file)), PROBE)
        assert len(file.readlines()) == 192


def test_an_iterator_of_batches_that_is_handed_over_is_used_up():
    batches = (DATA[at : at + 16] for at in range(0, 64, 16))
    assert len(sample_pool(batches, PROBE, limit=3)) == 48
    assert len(list(batches)) == 1


@pytest.mark.parametrize("kind", [Lines, Noting])
def test_a_state_is_put_back_after_reading_and_after_an_error(kind, numbers):
    stream, twin = kind(numbers), kind(numbers)
    for each in (stream, twin):
        list(itertools.islice(each, 20))
    assert held(sample_pool(batched(stream), PROBE)) == (ROWS[20:84] if kind is Lines else ROWS[:64])
    numbers.write_text("1\n2\nthree\n")
    with pytest.raises(ValueError, match="three"):
        sample_pool(batched(kind(numbers)), PROBE)
    assert stream.state_dict() == twin.state_dict()
    assert vars(stream).keys() == vars(twin).keys()


def test_a_copy_shares_what_may_only_be_read(tmp_path):
    stream = Shuffled()
    stream.lock, stream.module, stream.table = threading.Lock(), np, np.memmap(tmp_path / "a", mode="w+", shape=8)
    stream.fixed = np.memmap(tmp_path / "a", mode="r", shape=8)
    with ExitStack() as later:
        copied = spared(stream, later)
    assert copied is not stream
    assert copied.order is not stream.order
    assert copied.table is not stream.table
    assert all(getattr(copied, name) is getattr(stream, name) for name in ("source", "lock", "module", "fixed"))


def test_an_endless_stream_needs_a_ladder_or_a_limit(monkeypatch):
    class Endless(IterableDataset):
        def __iter__(self):
            return itertools.cycle(DATA)

    with monkeypatch.context() as patch:
        patch.setattr("pge_lightning.samples.read._ENDLESS", 500)
        with pytest.raises(PGEError, match=r"Expected an end of the training data, .* after 500 samples\. Limit"):
            sample_pool(batched(Endless()), ALL)
        assert len(sample_pool(batched(Endless()), ALL, limit=40)) == 640
        assert len(sample_pool([DATA[:16]] * 40, ALL)) == 640
    assert len(sample_pool(batched(Endless()), PROBE)) == 64


def test_a_stream_shorter_than_the_warm_up_is_gone_through_again():
    signature = collect_signature(
        Net(),
        batched(Going(range(20))),
        encoder="encoder",
        probe=Probe(steps=9, batch_size=8, budgets=(16,), restarts=2),
    )
    assert (signature.samples, signature.budget) == (16, 16)
    with pytest.raises(PGEError, match="at least one batch of 16 samples, but the training data holds 5"):
        sample_pool(batched(Going(range(5))), PROBE)

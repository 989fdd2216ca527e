"""Content: equal data have equal hashes, whatever they are made of and wherever they are read."""

import collections
import copy
import dataclasses
import os
import subprocess
import sys
import threading
from datetime import date
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pge_lightning.samples.content import content_hash

Pair = collections.namedtuple("Pair", "one other")


@dataclasses.dataclass
class Record:
    text: str
    values: list


@dataclasses.dataclass(slots=True)
class Slotted:
    name: str


class Node:
    def __init__(self, name):
        self.name, self.itself = name, self


def graphs(shift):
    from torch_geometric.data import Batch, Data  # slow to import, and of use to this alone

    edges = torch.tensor([[0, 1], [1, 2]])
    return Batch.from_data_list([Data(x=torch.ones(3, 2) + n, edge_index=edges) for n in (0, shift)])


DIFFERENT = {
    "tensors": lambda n: torch.arange(3.0) + n,
    "bfloat16": lambda n: torch.arange(3, dtype=torch.bfloat16) + n,
    "conjugates": lambda n: torch.tensor([1j, n]).conj(),
    "no samples": lambda n: [torch.ones(0)] * (n + 1),
    "sparse": lambda n: torch.eye(3 + n).to_sparse(),
    "compressed": lambda n: torch.eye(3 + n).to_sparse_csr(),
    "nested tensors": lambda n: torch.nested.nested_tensor([torch.ones(2), torch.ones(3 + n)]),
    "quantized": lambda n: torch.quantize_per_tensor(torch.arange(3.0) + n, 0.1, 0, torch.qint8),
    "arrays": lambda n: np.arange(3) + n,
    "shapes of arrays": lambda n: np.zeros((2, 3) if n else (3, 2)),
    "object arrays": lambda n: np.array([None, "a", n], dtype=object),
    "array scalars": lambda n: np.float32(n),
    "texts": lambda n: f"text {n} \ud800",
    "bytes": lambda n: [b"a", bytearray([n])],
    "numbers": lambda n: [1, 2.5, n, None, True, 1j],
    "lists within lists": lambda n: [[1], [2, n]] if n else [[1, 2], [n]],
    "dictionaries": lambda n: {"a": 1, "b": torch.ones(2) * n},
    "keys": lambda n: {"a" if n else "b": 1},
    "subclasses": lambda n: [collections.OrderedDict(a=n), collections.defaultdict(list, a=[n]), torch.Size([n])],
    "sets": lambda n: [{"a", "b", n}, frozenset({"x", "y"})],
    "named tuples": lambda n: Pair("a", n),
    "data classes": lambda n: Record("a", [torch.ones(2), n]),
    "slots": lambda n: Slotted(f"{n}"),
    "functions and types": lambda n: [len, Record, graphs if n else content_hash, torch.float32, torch.device("cpu")],
    "other objects": lambda n: [date(2000, 1, 1 + n), Path("folder") / str(n)],
    "objects that hold themselves": lambda n: Node(n),
    "graphs": graphs,
    "what cannot be pickled": lambda n: [threading.Lock(), n],
}


@pytest.mark.filterwarnings("ignore:.*prototype stage|.*beta state|.*quantization")
@pytest.mark.parametrize("kind", DIFFERENT)
def test_equal_content_has_an_equal_hash_and_other_content_another(kind):
    make = DIFFERENT[kind]
    one, again, other = (content_hash(make(n)) for n in (0, 0, 1))
    assert one == again != other


def hashes():
    """What another process prints."""
    return " ".join(content_hash(make(1)) for kind, make in DIFFERENT.items() if kind != "graphs")


@pytest.mark.filterwarnings("ignore:.*prototype stage|.*beta state|.*quantization")
def test_another_process_finds_the_same():
    code = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import test_content as t; print(t.hashes())"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "1", "PYTHONWARNINGS": "ignore"}
    found = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert found.stdout.split() == hashes().split()


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner) | st.tuples(inner, inner),
)


@given(values)
def test_sharing_and_order_do_not_count(value):
    assert content_hash([value, value]) == content_hash([value, copy.deepcopy(value)])
    if isinstance(value, dict):
        assert content_hash(value) == content_hash(dict(reversed(value.items())))


def test_hashes_of_plain_batches_stay_what_they_were():
    assert content_hash((100, torch.arange(100.0))) == "91a5ba3a409ee6a4"

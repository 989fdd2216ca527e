"""The peak of a collection's memory: one copy of the module, one optimizer state and the signature."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from helpers import Points, points
from pge_lightning.isolation.clone import isolated_copy
from pge_lightning.isolation.memory import give_back, release

BENCHMARK = Path(__file__).parents[1] / "examples" / "benchmarks" / "memory.py"

# Ten layers of a million weights. Beyond the bound of 200 MiB (160 under SGD) come what PyTorch and the interpreter
# keep for themselves, and a layer of 4 MiB in the making; one more copy would be 40 MiB.
TOLERANCE = 1.08

KEEPING = """
import sys
sys.path.insert(0, sys.argv[1])
import memory
from pge_lightning.collect import runs
kept, release = [], runs.release
large = lambda clone: clone["head"].in_features == 1024
runs.release = lambda clone: kept.append(clone) if large(clone) and not kept else release(clone)
memory.measure("adam", 1024, 10, 2)
"""


def peak_and_bound(*command):
    # Blocks of a layer's size go back to the system when they are freed: what is counted is what is in use.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "1000000", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, *command], env=environment, capture_output=True, text=True, check=True)
    peak, copy, bound = map(float, done.stdout.split())
    assert copy == pytest.approx(40, rel=0.01)
    return peak, bound


@pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from /proc")
@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_the_peak_is_one_copy_one_state_and_the_signature(optimizer):
    peak, bound = peak_and_bound(str(BENCHMARK), "--only", optimizer, "--width=1024", "--depth=10")
    assert bound == pytest.approx({"adam": 200, "sgd": 160}[optimizer], rel=0.01)
    assert bound * 0.9 < peak < bound * TOLERANCE


@pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from /proc")
def test_one_more_copy_that_is_kept_is_noticed():
    peak, bound = peak_and_bound("-c", KEEPING, str(BENCHMARK.parent))
    assert peak > bound * TOLERANCE


def test_a_released_copy_holds_no_memory():
    module = Points()
    clone = isolated_copy(module)
    clone(points(20).tensors[0]).sum().backward()
    release(clone)
    assert clone.head.weight.grad is None
    assert sum(tensor.untyped_storage().nbytes() for tensor in [*clone.parameters(), *clone.buffers()]) == 0
    assert module.head.weight.numel() == 30


def test_giving_back_changes_no_value():
    tensors = [torch.full((1000,), float(k)) for k in range(100)]
    del tensors[::2]
    give_back()
    assert all((tensor == 2 * k + 1).all() for k, tensor in enumerate(tensors))

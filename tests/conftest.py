"""What all tests share: one thread, because the number of threads decides how sums are rounded."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from trainer_helpers import near_and_far

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def clean_process() -> Iterator[None]:
    """Put back what Lightning's launchers leave in the process: the number of threads, and a process group."""
    torch.set_num_threads(1)
    yield
    if dist.is_initialized():
        dist.destroy_process_group()


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    """A library with a source of the target's own rule and a foreign one."""
    return near_and_far(tmp_path / "sources")

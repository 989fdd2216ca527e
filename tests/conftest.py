"""What all tests share: one thread, because the number of threads decides how sums are rounded."""

from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def clean_process() -> Iterator[None]:
    """Put back what Lightning's launchers leave in the process: the number of threads, and a process group."""
    torch.set_num_threads(1)
    yield
    if dist.is_initialized():
        dist.destroy_process_group()

"""What all tests share: one thread, because the number of threads decides how sums are rounded."""

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def one_thread():
    """Start every test with one thread: Lightning's launchers change the number for the whole process."""
    torch.set_num_threads(1)

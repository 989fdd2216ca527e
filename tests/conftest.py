"""What all tests share: one thread, as on the smallest machine."""

import torch

torch.set_num_threads(1)

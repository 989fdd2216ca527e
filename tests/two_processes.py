"""Two real processes, joined in a group; what each has to say comes back."""

from datetime import timedelta

import torch
import torch.distributed as dist


def _process(rank, folder, work):
    torch.set_num_threads(1)
    store = f"file://{folder}/store"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=2, timeout=timedelta(seconds=60))
    torch.save(work(rank), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def in_two_processes(work, folder):
    """Run a function of the rank in both; its two results."""
    torch.multiprocessing.start_processes(_process, (str(folder), work), nprocs=2, start_method="fork")
    return [torch.load(f"{folder}/{rank}.pt", weights_only=False) for rank in range(2)]

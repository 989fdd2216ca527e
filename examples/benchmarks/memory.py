"""How much memory collecting takes at most, beyond what was there: one copy, one optimizer state and the signature.

A module of some hundred million weights is collected from in a process of its own, two restarts on small batches. The
peak of its resident memory is the kernel's own count, so this runs on Linux only. SGD has no state; what it needs in
its place are the gradients, which under Adam fit into the room that the row of the running restart has not yet taken.

    python examples/benchmarks/memory.py
"""

import argparse
import subprocess
import sys
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from pge_lightning import Probe, collect_signature

STEPS, BATCH = 3, 8


def deep(width: int, depth: int) -> nn.ModuleDict:
    """A stack of square layers with a small head."""
    layers = (layer for _ in range(depth) for layer in (nn.Linear(width, width, bias=False), nn.ReLU()))
    return nn.ModuleDict({"encoder": nn.Sequential(*layers), "head": nn.Linear(width, 10)})


def loss_fn(module: nn.ModuleDict, batch: list[Tensor]) -> Tensor:
    """Cross-entropy of the head's outputs."""
    return F.cross_entropy(module["head"](module["encoder"](batch[0])), batch[1])


def resident(field: str) -> float:
    """Resident memory in MiB: now (``VmRSS``) or at most so far (``VmHWM``)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024


def collect(module: nn.ModuleDict, optimizer: str, restarts: int) -> None:
    """Collect from random inputs."""
    probe = Probe(name="memory", restarts=restarts, steps=STEPS, optimizer=optimizer, batch_size=BATCH, budgets=())  # type: ignore[arg-type]  # one of the two that the parser lets through
    inputs = torch.randn(4 * BATCH, module["head"].in_features)
    loader = DataLoader(TensorDataset(inputs, torch.randint(10, (4 * BATCH,))), batch_size=BATCH)
    collect_signature(module, loader, loss_fn=loss_fn, probe=probe, encoder="encoder")


def measure(optimizer: str, width: int, depth: int, restarts: int) -> None:
    """Print the peak beyond the baseline, the size of the module, and the bound, all in MiB."""
    collect(deep(8, 2), optimizer, restarts)  # whatever is made once in a process is there before
    module = deep(width, depth)
    copy = sum(unit.nbytes for unit in module.parameters()) / 2**20
    signature = restarts * sum(unit.nbytes for unit in module["encoder"].parameters()) / 2**20
    state = copy * (2 if optimizer == "adam" else 1)
    before = resident("VmRSS")
    collect(module, optimizer, restarts)
    print(resident("VmHWM") - before, copy, copy + state + signature)


def main() -> None:
    """Print one line per optimizer."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=2048)
    parser.add_argument("--depth", type=int, default=24)
    parser.add_argument("--restarts", type=int, default=2)
    parser.add_argument("--only", choices=("adam", "sgd"), help="measure this optimizer in this process")
    options = parser.parse_args()
    if options.only:
        measure(options.only, options.width, options.depth, options.restarts)
        return
    print(f"{options.depth * options.width**2 / 1e6:.0f} million weights, {options.restarts} restarts")
    print(f"{'optimizer':<10} {'peak MiB':>9} {'bound MiB':>10} {'ratio':>6} {'in copies of the module':>24}")
    for optimizer in ("adam", "sgd"):
        command = [sys.executable, __file__, "--only", optimizer]
        command += [f"--{name}={getattr(options, name)}" for name in ("width", "depth", "restarts")]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        peak, copy, bound = map(float, done.stdout.split())
        copies = f"{peak / copy:.2f} of {bound / copy:.0f}"
        print(f"{optimizer:<10} {peak:>9.0f} {bound:>10.0f} {peak / bound:>6.3f} {copies:>24}")


if __name__ == "__main__":
    main()

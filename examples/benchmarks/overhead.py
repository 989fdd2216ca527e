"""What collecting costs beyond the passes it makes: seconds of `collect_signature` over those of a bare PyTorch loop.

Both do the same restarts, forward and backward passes and steps on the same batches, in turn, in one process; the
ratio is taken pair by pair.

    python examples/benchmarks/overhead.py
"""

import argparse
import statistics
import time

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from pge_lightning import Probe, collect_signature
from pge_lightning.reference import Classifier, ImageEncoder
from pge_lightning.samples.pool import draw

SAMPLES = 1000


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.first_norm = nn.BatchNorm2d(outputs)
        self.second = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.second_norm = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Sequential()
        if stride > 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """The sum of both ways, rectified."""
        hidden = self.second_norm(self.second(F.relu(self.first_norm(self.first(x)))))
        return F.relu(hidden + self.shortcut(x))


class ResNet18(nn.Sequential):
    """Eighteen layers and 11 million weights, for one input channel; 512 features."""

    features = 512

    def __init__(self) -> None:
        widths = [(64, 64, 1), (64, 64, 1), (64, 128, 2), (128, 128, 1), (128, 256, 2), (256, 256, 1), (256, 512, 2)]
        super().__init__(
            nn.Conv2d(1, 64, 7, stride=2, padding=3, bias=False),
            nn.BatchNorm2d(64),
            nn.ReLU(),
            nn.MaxPool2d(3, stride=2, padding=1),
            *(BasicBlock(*width) for width in [*widths, (512, 512, 1)]),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        )


def bare_loop(build: type[nn.Module], x: Tensor, y: Tensor, probe: Probe) -> float:
    """Seconds of the same passes and steps, written down plainly."""
    begin = time.perf_counter()
    for restart in range(probe.restarts or 1):
        model = Classifier(build(), num_classes=10)
        optimizer = torch.optim.Adam(model.parameters(), lr=probe.lr)
        for indices in draw(SAMPLES, SAMPLES, probe, restart):
            chosen = torch.as_tensor(indices)
            optimizer.zero_grad()
            F.cross_entropy(model(x[chosen]), y[chosen]).backward()
            optimizer.step()
    return time.perf_counter() - begin


def collection(build: type[nn.Module], x: Tensor, y: Tensor, probe: Probe) -> float:
    """Seconds of `collect_signature`, all its checks included."""
    model = Classifier(build(), num_classes=10)
    loader = DataLoader(TensorDataset(x, y), batch_size=64, shuffle=True)
    begin = time.perf_counter()
    collect_signature(model, loader, probe=probe, encoder="encoder")
    return time.perf_counter() - begin


def main() -> None:
    """Print one line per network: median seconds of both, median ratio and its range."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    x, y = torch.randn(SAMPLES, 1, 28, 28), torch.randint(10, (SAMPLES,))
    print(f"{'network':<14} {'collect s':>10} {'bare s':>8} {'ratio':>6} {'range':>14}   ({options.threads} threads)")
    for name, build, restarts, steps in (("small CNN", ImageEncoder, 8, 60), ("ResNet-18", ResNet18, 2, 60)):
        probe = Probe(name="benchmark", restarts=restarts, steps=steps, budgets=(SAMPLES,))
        pairs = [(collection(build, x, y, probe), bare_loop(build, x, y, probe)) for _ in range(options.pairs + 1)][1:]
        ratios = sorted(ours / bare for ours, bare in pairs)
        ours, bare = (statistics.median(column) for column in zip(*pairs, strict=True))
        print(
            f"{name:<14} {ours:>10.2f} {bare:>8.2f} {statistics.median(ratios):>6.3f} "
            f"{ratios[0]:>6.3f}-{ratios[-1]:.3f}"
        )


if __name__ == "__main__":
    main()

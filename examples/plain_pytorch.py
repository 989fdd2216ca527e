"""No Trainer: signatures of any module, from any batches, with any loss.

    python examples/plain_pytorch.py

Which is nearest to one half of scikit-learn's digits: the other half as it is, in negative, or with random labels?
"""

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from pge_lightning import Gap, Probe, Signature, collect_signature, compare

PIXELS, LABELS = (torch.from_numpy(array) for array in load_digits(return_X_y=True))
IMAGES = (PIXELS.float() / 16).view(-1, 1, 8, 8)
# Signatures compare only where their probes are equal.
PROBE = Probe(budgets=(500,))


def build_model() -> nn.Module:
    """A small network, whose first part is what would be transferred."""
    encoder = nn.Sequential(nn.Conv2d(1, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.ReLU(), nn.Flatten())
    return nn.Sequential(encoder, nn.Linear(256, 10))


def loss(model: nn.Module, batch: list[Tensor]) -> Tensor:
    """Any function of a module and a batch."""
    images, labels = batch
    return F.cross_entropy(model(images), labels)


def main() -> dict[str, Gap]:
    """Collect one signature per data set, and compare each with the target's."""
    order = torch.randperm(len(LABELS), generator=torch.Generator().manual_seed(0))
    half, other = order[:800], order[800:1600]
    sources = {
        "as it is": (IMAGES[other], LABELS[other]),
        "negative": (1 - IMAGES[other], LABELS[other]),
        "random labels": (IMAGES[other], LABELS[other].roll(1)),
    }
    model = build_model()

    def collect(images: Tensor, labels: Tensor) -> Signature:
        batches = DataLoader(TensorDataset(images, labels), batch_size=64)
        return collect_signature(model, batches, loss_fn=loss, probe=PROBE, encoder="0")

    target = collect(IMAGES[half], LABELS[half])
    gaps = {name: compare(collect(*data), target) for name, data in sources.items()}
    for name, gap in gaps.items():
        print(f"{name:13} {gap.value:.3f} ± {gap.standard_error:.3f}")
    return gaps


if __name__ == "__main__":
    torch.manual_seed(0)
    main()

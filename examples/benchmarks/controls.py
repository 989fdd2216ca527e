"""Does the gap see what it should see, and nothing else? Controls on scikit-learn's digits, with the default probe.

python examples/benchmarks/controls.py
"""

import argparse
from statistics import fmean
from typing import Any

import lightning as L
import torch
from rich.console import Console
from rich.table import Table
from torch.utils.data import DataLoader, TensorDataset

from pge_lightning import PROBES, Gap, Probe, Signature, collect_signature, compare
from pge_lightning.data import Gray28, MlxtendMnist, SklearnDigits
from pge_lightning.reference import Classifier, ImageEncoder

BUDGET = 200
GRAY28 = ("mnist", "usps", "kannada_mnist", "dig_mnist", "fashion_mnist", "notmnist", "quickdraw8", "sign_digits")
HALVES: dict[str, Any] = {"first": {"part": (0.0, 0.5)}, "second": {"part": (0.5, 1.0)}}


def signature_of(datamodule: L.LightningDataModule, probe: Probe) -> Signature:
    """The signature of a data module's training samples, for a small image classifier."""
    datamodule.setup("fit")
    model = Classifier(ImageEncoder(), num_classes=datamodule.num_classes)
    return collect_signature(model, datamodule.train_dataloader(), probe=probe, budget=BUDGET)


def noise_signature(target: L.LightningDataModule, probe: Probe) -> Signature:
    """The signature of noise with the mean and the spread of the target's pixels, and labels at random."""
    images = torch.stack([image for image, _ in target.train_dataloader().dataset])
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(images.shape, generator=generator) * images.std() + images.mean()
    labels = torch.randint(10, (len(images),), generator=generator)
    loader = DataLoader(TensorDataset(noise, labels), batch_size=64)
    return collect_signature(Classifier(ImageEncoder(), num_classes=10), loader, probe=probe, budget=BUDGET)


def other_sets(root: str | None) -> dict[str, L.LightningDataModule]:
    """Real data other than the digits."""
    if root is not None:
        return {name: Gray28(name=name, root=root) for name in GRAY28}
    kinds = {"MNIST": None, "MNIST, inverted": "invert", "MNIST, edges": "edges", "MNIST, permuted": "permute_pixels"}
    return {name: MlxtendMnist(transform=kind) for name, kind in kinds.items()}


def controls(probe: Probe = PROBES["default"], root: str | None = None) -> tuple[dict[str, Gap], list[str]]:
    """Gaps from the first half of the digits to each control, and which of these are other real data."""
    digits = SklearnDigits(**HALVES["first"])
    target = signature_of(digits, probe)
    others = other_sets(root)
    signatures = {
        "second half": signature_of(SklearnDigits(**HALVES["second"]), probe),
        "second half, classes renumbered": signature_of(SklearnDigits(**HALVES["second"], permute_classes=1), probe),
        "first half, labels shuffled": signature_of(SklearnDigits(**HALVES["first"], shuffle_labels=0), probe),
        **{name: signature_of(datamodule, probe) for name, datamodule in others.items()},
        "noise": noise_signature(digits, probe),
    }
    return {name: compare(signature, target) for name, signature in signatures.items()}, list(others)


def main() -> None:
    """Print the controls as a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--probe", default="default", choices=sorted(PROBES))
    parser.add_argument("--root", help="folder that holds gray28/")
    options = parser.parse_args()
    torch.set_num_threads(1)  # their number decides how sums are rounded, and warm-ups amplify that
    gaps, others = controls(PROBES[options.probe], options.root)
    table = Table("to the first half of the digits", "gap", "standard error", "95 % interval")
    for name, gap in gaps.items():
        table.add_row(name, f"{gap.value:.3f}", f"{gap.standard_error:.3f}", f"{gap.low:.3f} - {gap.high:.3f}")
    table.add_row("mean of the other real data", f"{fmean(gaps[name].value for name in others):.3f}")
    Console().print(table)


if __name__ == "__main__":
    main()

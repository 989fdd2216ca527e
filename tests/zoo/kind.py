"""What a kind of module is made of."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from pge_lightning.collect.loss import LossFn
from pge_lightning.encoder import EncoderSpec

SAMPLES, BATCH = 24, 8


@dataclass(frozen=True)
class Kind:
    """One row of the README's table.

    Args:
        name: What the row says.
        build: Takes the size of the head and gives the module, weights drawn from the global random state.
        data: Takes a seed and the size of the head and gives the training data.
        head: Beginnings of the names of trainable parameters that are not transferred.
        encoder: How the user names the transferred part.
        loss_fn: The user's loss, where the module has none of its own that would do.
        still: Ends of the names of units that the loss rightly does not move.
        fixed: Ends of the names of matrices and kernels that start from the same values always.
        trainer: Whether a Trainer trains it.
    """

    name: str
    build: Callable[[int], nn.Module]
    data: Callable[[int, int], Any]
    head: tuple[str, ...] = ("head.",)
    encoder: EncoderSpec = None
    loss_fn: LossFn | None = None
    still: tuple[str, ...] = ()
    fixed: tuple[str, ...] = ()
    trainer: bool = True

    def units(self, module: nn.Module) -> list[str]:
        """The names that a signature must hold."""
        named = [name for name, unit in module.named_parameters() if unit.requires_grad]
        return [name for name in named if not name.startswith(self.head)] if self.head else named


class Task(pl.LightningModule):
    """What all LightningModules here share."""

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam((unit for unit in self.parameters() if unit.requires_grad), lr=1e-2)


class Rows(Dataset[Any]):
    """Samples of any type."""

    def __init__(self, rows: Sequence[Any]) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Any:
        return self.rows[index]


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def loader(*data: Tensor | Sequence[Any], **options: Any) -> DataLoader[Any]:
    """Shuffled batches of some tensors, or of a list of samples of any type."""
    dataset = Rows(data[0]) if not isinstance(data[0], Tensor) else TensorDataset(*data)
    return DataLoader(dataset, **{"batch_size": BATCH, "shuffle": True, **options})


def labelled(seed: int, classes: int, *shape: int, samples: int = SAMPLES) -> tuple[Tensor, Tensor]:
    """Normal inputs, and the class that a random linear map tells."""
    inputs = torch.randn(samples, *shape, generator=seeded(seed))
    rule = torch.randn(inputs[0].numel(), classes, generator=seeded(seed + 1000))
    return inputs, (inputs.flatten(1) @ rule).argmax(1)


def sentences(seed: int, classes: int, words: int = 32, length: int = 6) -> tuple[Tensor, Tensor]:
    """Token numbers from 1 up, and a class that their sum tells."""
    tokens = torch.randint(1, words, (SAMPLES, length), generator=seeded(seed))
    return tokens, (tokens * (seed + 1)).sum(1) % classes

"""A classifier over any encoder."""

from typing import Literal

import lightning as L
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics.classification import MulticlassAccuracy
from typing_extensions import override

__all__ = ["Classifier"]


class Classifier(L.LightningModule):
    """An encoder and a linear head, trained with cross-entropy on batches ``(x, y)``.

    Logs ``train_loss`` (per step), ``val_loss``, ``val_acc`` and ``test_acc`` (per epoch; fractions of samples that
    are right).

    Args:
        encoder: Maps inputs to ``[batch, features]`` and says ``features``.
        num_classes: Number of classes.
        lr: Learning rate.
        weight_decay: Weight decay of the optimizer.
        optimizer: ``"adam"``, ``"adamw"`` or ``"sgd"`` (with momentum 0.9).

    Raises:
        TypeError: If the encoder does not say how many features it gives.
        ValueError: If there are fewer than two classes, or the optimizer is unknown.
    """

    def __init__(
        self,
        encoder: nn.Module,
        num_classes: int,
        lr: float = 1e-3,
        weight_decay: float = 0.0,
        optimizer: Literal["adam", "adamw", "sgd"] = "adam",
    ) -> None:
        super().__init__()
        features = getattr(encoder, "features", None)
        if not isinstance(features, int):
            raise TypeError(
                f"Expected `encoder` to have an attribute `features: int`, but {type(encoder).__name__} has "
                f"{features!r}. Set it to the length of the encoder's output."
            )
        if num_classes < 2:
            raise ValueError(f"Expected `num_classes` to be at least 2, but got {num_classes}.")
        if optimizer not in ("adam", "adamw", "sgd"):
            raise ValueError(f"Expected `optimizer` to be 'adam', 'adamw' or 'sgd', but got {optimizer!r}.")
        self.encoder = encoder
        self.head = nn.Linear(features, num_classes)
        self.lr = lr
        self.weight_decay = weight_decay
        self.optimizer = optimizer
        self.val_acc = MulticlassAccuracy(num_classes, average="micro")
        self.test_acc = MulticlassAccuracy(num_classes, average="micro")

    @override
    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.encoder(x))
        return logits

    @override
    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        x, y = batch
        loss = F.cross_entropy(self(x), y)
        self.log("train_loss", loss, prog_bar=True, batch_size=len(y))
        return loss

    @override
    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        x, y = batch
        logits = self(x)
        self.val_acc(logits, y)
        self.log("val_loss", F.cross_entropy(logits, y), batch_size=len(y))
        self.log("val_acc", self.val_acc, prog_bar=True, batch_size=len(y))

    @override
    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        x, y = batch
        self.test_acc(self(x), y)
        self.log("test_acc", self.test_acc, batch_size=len(y))

    @override
    def configure_optimizers(self) -> torch.optim.Optimizer:
        if self.optimizer == "sgd":
            return torch.optim.SGD(self.parameters(), self.lr, momentum=0.9, weight_decay=self.weight_decay)
        kind = torch.optim.Adam if self.optimizer == "adam" else torch.optim.AdamW
        return kind(self.parameters(), self.lr, weight_decay=self.weight_decay)

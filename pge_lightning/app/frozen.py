"""Fine-tuning of the head alone, on an encoder that stays as it is."""

import lightning as L
from typing_extensions import override

from pge_lightning.encoder import EncoderSpec, encoder_parameters
from pge_lightning.errors import PGEError

__all__ = ["FrozenEncoder"]


class FrozenEncoder(L.Callback):
    """Keeps the encoder while the rest is trained: its parameters, and what its batch norms know of past data.

    Args:
        encoder: Names the encoder, as in :func:`~pge_lightning.encoder.encoder_units`.
    """

    def __init__(self, encoder: EncoderSpec = None) -> None:
        self.encoder = encoder

    @override
    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Freeze the encoder's parameters, before optimizers are made.

        Args:
            trainer: The Trainer.
            pl_module: The model.
            stage: What it is set up for.

        Raises:
            PGEError: If nothing is left to be trained.
        """
        for unit in encoder_parameters(pl_module, self.encoder).values():
            unit.requires_grad_(False)
        if not any(unit.requires_grad for unit in pl_module.parameters()):
            raise PGEError(
                f"Expected a head to train beside the frozen encoder={self.encoder!r} of {type(pl_module).__name__}, "
                "but nothing is left. Name the part that is the encoder with `encoder`."
            )

    @override
    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Put the encoder's parts in evaluation mode, without dropout and new statistics of batches.

        Args:
            trainer: The Trainer.
            pl_module: The model.
        """
        frozen = {id(unit) for unit in encoder_parameters(pl_module, self.encoder).values()}
        for part in pl_module.modules():
            units = {id(unit) for unit in part.parameters()}
            if units and units <= frozen:
                part.eval()

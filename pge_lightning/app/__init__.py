"""The command `pge`: tasks over a library of sources, configured by Hydra."""

from pge_lightning.app.cli import TaskError, main, run

__all__ = ["TaskError", "main", "run"]

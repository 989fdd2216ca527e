"""The log of an evaluation: one line per finished piece of work, so that a run that was cut off goes on."""

import csv
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from pge_lightning.record import Record
from pge_lightning.records import Records

__all__ = ["Cell", "CellLog", "records_of"]


@dataclass(frozen=True)
class Cell:
    """One piece of work and what came of it: a source's training, or a fine-tuning.

    Args:
        target: Data set that was fine-tuned on; empty where a source was trained.
        source: What it started from, or the source that was trained.
        seed: Seed of the training.
        settings: Hash of everything else that matters.
        value: The metric, higher is better; ``None`` where the work failed, or nothing was logged.
        seconds: Wall-clock time.
        reason: Why it failed; empty where it did not.
    """

    target: str
    source: str
    seed: int
    settings: str
    value: float | None = None
    seconds: float = 0.0
    reason: str = ""


class CellLog:
    """Cells in a CSV file that only grows. Failed ones are not found, so that the next run tries them again.

    Args:
        path: The file; made with the first cell.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._done = {_key(cell): cell for cell in self._read() if not cell.reason}

    def find(self, cell: Cell) -> Cell | None:
        """Look for a piece of work that was finished.

        Args:
            cell: What is to be done: target, source, seed and settings count.

        Returns:
            The cell with its value, or ``None`` if the work is still to be done.
        """
        return self._done.get(_key(cell))

    def trained(self, source: str) -> str | None:
        """Look for the settings that a source was last trained with.

        Args:
            source: Its name.

        Returns:
            Their hash, or ``None`` if this log does not know.
        """
        trainings = [cell for cell in self._done.values() if not cell.target and cell.source == source]
        return trainings[-1].settings if trainings else None

    def append(self, cell: Cell) -> None:
        """Write a cell down at once.

        Args:
            cell: What was done.
        """
        if not cell.reason:
            self._done.pop(_key(cell), None)
            self._done[_key(cell)] = cell
        new = not self.path.exists()
        with self.path.open("a", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, [field.name for field in fields(Cell)], lineterminator="\n")
            if new:
                writer.writeheader()
            writer.writerow(asdict(cell))

    def _read(self) -> list[Cell]:
        if not self.path.exists():
            return []
        text = self.path.read_text(encoding="utf-8")
        whole = text[: text.rfind("\n") + 1]
        if not whole:
            self.path.unlink()
        elif whole != text:  # a run was killed while it wrote a line, and others would follow the torn one
            self.path.write_text(whole, encoding="utf-8")
        return [_cell(row) for row in csv.DictReader(whole.splitlines())]


def records_of(cells: Sequence[Cell], metric: str) -> Records:
    """Finished fine-tunings as a library keeps them.

    Args:
        cells: Fine-tunings; failed ones are left out.
        metric: Name of what was measured.

    Returns:
        The records.
    """
    done = [(cell, cell.value) for cell in cells if cell.value is not None and not cell.reason]
    return Records(Record(cell.source, cell.target, metric, value, seed=cell.seed) for cell, value in done)


def _key(cell: Cell) -> tuple[str, str, int, str]:
    return cell.target, cell.source, cell.seed, cell.settings


def _cell(row: dict[str, str]) -> Cell:
    value = float(row["value"]) if row["value"] else None
    return Cell(
        row["target"], row["source"], int(row["seed"]), row["settings"], value, float(row["seconds"]), row["reason"]
    )

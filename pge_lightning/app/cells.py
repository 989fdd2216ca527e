"""The log of an evaluation: one line per finished piece of work, so that a run that was cut off goes on."""

import csv
import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TextIO

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
        finished: When, UTC, ISO 8601; empty in logs that do not tell.
    """

    target: str
    source: str
    seed: int
    settings: str
    value: float | None = None
    seconds: float = 0.0
    reason: str = ""
    finished: str = ""


COLUMNS = [field.name for field in fields(Cell)]


class CellLog:
    """Cells in CSV files that only grow. Failed ones are not found, so that the next run tries them again.

    Every run reads all files, and writes to its own alone: ``cells.csv``, or ``cells-0.csv`` and so on of shards that
    run at the same time.

    Args:
        folder: Where they lie.
        shard: Number of the shard; ``None`` where there is one run for all.
    """

    def __init__(self, folder: Path, shard: int | None = None) -> None:
        self.path = folder / ("cells.csv" if shard is None else f"cells-{shard}.csv")
        self._done: dict[tuple[str, str, int, str], Cell] = {}
        self._trained: dict[str, str] = {}
        self._mend()
        cells = [cell for path in sorted(folder.glob("cells*.csv")) for cell in _read(path)]
        for cell in sorted(cells, key=lambda cell: cell.finished):
            self._keep(cell)

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
        return self._trained.get(source)

    def append(self, cell: Cell) -> None:
        """Write a cell down at once.

        Args:
            cell: What was done.
        """
        self._keep(cell)
        new = not self.path.exists()
        with self.path.open("a", encoding="utf-8", newline="") as file:
            _write(file, [cell], heading=new)

    def _keep(self, cell: Cell) -> None:
        if cell.reason:
            return
        self._done[_key(cell)] = cell
        if not cell.target:
            self._trained[cell.source] = cell.settings

    def _mend(self) -> None:
        """Write the own file anew where a killed run has left a torn line, or an older version other columns."""
        if not self.path.exists():
            return
        text = io.StringIO(newline="")
        _write(text, _read(self.path), heading=True)
        if text.getvalue().encode() != self.path.read_bytes():
            mended = self.path.with_suffix(".tmp")
            mended.write_bytes(text.getvalue().encode())
            mended.replace(self.path)


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


def _read(path: Path) -> list[Cell]:
    """The whole lines of a file; the last one may be torn, or still being written."""
    text = path.read_text(encoding="utf-8")
    return [_cell(row) for row in csv.DictReader(text[: text.rfind("\n") + 1].splitlines())]


def _write(file: TextIO, cells: Sequence[Cell], heading: bool) -> None:
    writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
    if heading:
        writer.writeheader()
    writer.writerows(map(asdict, cells))


def _cell(row: dict[str, str]) -> Cell:
    value = float(row["value"]) if row["value"] else None
    known = row["target"], row["source"], int(row["seed"]), row["settings"], value, float(row["seconds"])
    return Cell(*known, row["reason"], row.get("finished") or "")

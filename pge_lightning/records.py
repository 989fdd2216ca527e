"""Records: finished fine-tunings, what they say of the sources, and where they are kept."""

import csv
import io
import json
import os
import re
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields
from hashlib import sha256

import fsspec
import pandas as pd
from fsspec import AbstractFileSystem
from lightning.pytorch.utilities import rank_zero_warn

from pge_lightning import storage
from pge_lightning.errors import ArtifactError, PGEError
from pge_lightning.functional.standing import standardised, standings
from pge_lightning.record import COLUMNS, Record, decode_record, encode_record, from_row, to_cell, to_row

__all__ = ["RecordFolder", "Records"]

_FILE = re.compile(r"[0-9a-f]{32}\.json")
_CONDITIONS = ["target", "metric", "settings"]


class Records:
    """Finished fine-tunings, in one order, never changed; equal ones count once.

    Args:
        records: The records.

    Example:
        >>> runs = [Record("mnist", "usps", "acc", 0.9), Record("svhn", "usps", "acc", 0.8)]
        >>> Records(runs).standings().round(2)
               standing  standard_error  targets
        mnist      0.35            0.61        1
        svhn      -0.35            0.61        1
    """

    def __init__(self, records: Iterable[Record] = ()) -> None:
        self._records = tuple({encode_record(record): record for record in records}.values())

    def __iter__(self) -> Iterator[Record]:
        return iter(self._records)

    def __len__(self) -> int:
        return len(self._records)

    def to_pandas(self) -> pd.DataFrame:
        """One row per record.

        Returns:
            Columns source, target, metric, value, higher_is_better, seed, created, one per setting, and one per
            estimate, such as ``estimates.gap``.
        """
        frame = pd.DataFrame([to_row(record) for record in self])
        return frame.reindex(columns=[*COLUMNS, *(name for name in frame if name not in COLUMNS)])

    def to_csv(self, path: str | os.PathLike[str]) -> None:
        """Write a table that :meth:`from_csv` reads back unchanged.

        Args:
            path: Path or URL.
        """
        rows = [to_row(record) for record in self]
        names = dict.fromkeys([*COLUMNS, *(name for row in rows for name in row)])
        with fsspec.open(os.fspath(path), "w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(names))
            writer.writeheader()
            writer.writerows({name: to_cell(name, value) for name, value in row.items()} for row in rows)

    @classmethod
    def from_csv(cls, path: str | os.PathLike[str]) -> "Records":
        """Read records from a table: columns source, target, metric and value, and any others.

        The columns seed, higher_is_better and created are known, too; ``estimates.NAME`` holds an estimate, and every
        other column a setting. An empty cell says nothing.

        Args:
            path: Path or URL.

        Returns:
            The records.

        Raises:
            ValueError: If the file is no such table, or a row is damaged; the message tells the line.
            ArtifactError: If the file cannot be read.
        """
        try:
            with fsspec.open(os.fspath(path), "r", encoding="utf-8-sig", newline="") as file:
                text = file.read()
        except (OSError, UnicodeDecodeError) as error:
            raise ArtifactError(f"Expected a table of records, but got {error!r}. Check '{path}'.") from error
        return cls(_from_table(text, str(path)))

    def without_target(self, name: str) -> "Records":
        """The records of other targets.

        Args:
            name: The target to leave out.

        Returns:
            The others.
        """
        return Records(record for record in self if record.target != name)

    def means(self) -> pd.DataFrame:
        """Means over seeds.

        Returns:
            One row per target, metric, settings (as JSON) and source, with the columns value (mean), higher_is_better,
            seeds (how many runs) and standard_deviation (nan for a single run).

        Raises:
            PGEError: If the direction of a metric is not the same in all records.
        """
        rows = [{**asdict(record), "settings": _settings(record)} for record in self]
        frame = pd.DataFrame(rows, columns=[entry.name for entry in fields(Record)])
        directions = frame.groupby("metric")["higher_is_better"].nunique()
        if (directions > 1).any():
            raise PGEError(
                f"Expected each metric to have one direction, but {list(directions.index[directions > 1])} have both "
                "in these records. Correct `higher_is_better`."
            )
        means = frame.groupby([*_CONDITIONS, "source"]).agg(
            value=("value", "mean"),
            higher_is_better=("higher_is_better", "first"),
            seeds=("value", "size"),
            standard_deviation=("value", "std"),
        )
        return means.reset_index()

    def scores(self) -> pd.DataFrame:
        """What every source gave, the higher the better: losses have their sign turned.

        Fine-tuning a source on its own data set does not count.

        Returns:
            Means over seeds, ``[conditions, sources]``, nan where a source was not tried; the index holds target,
            metric and settings.
        """
        means = self.means()
        means = means[means["source"] != means["target"]]
        score = means["value"].where(means["higher_is_better"].astype(bool), -means["value"])
        return (
            means
            .assign(score=score)
            .pivot(index=_CONDITIONS, columns="source", values="score")
            .rename_axis(columns=None)
        )

    def told(self, estimator: str) -> pd.DataFrame:
        """What an estimator told before the fine-tunings.

        Args:
            estimator: Its name.

        Returns:
            Means over seeds in its own direction, a table like :meth:`scores`, nan where it told nothing.
        """
        rows = [
            (record.target, record.metric, _settings(record), record.source, record.estimates[estimator])
            for record in self
            if estimator in record.estimates
        ]
        frame = pd.DataFrame(rows, columns=[*_CONDITIONS, "source", "value"])
        return frame.pivot_table(index=_CONDITIONS, columns="source", values="value").reindex_like(self.scores())

    def standings(self, exclude_target: str | None = None, sources: Iterable[str] = ()) -> pd.DataFrame:
        """Each source's mean standing over targets; see :func:`~pge_lightning.functional.standing.standings`.

        Args:
            exclude_target: A target that must not count, such as the one that is to be ranked for.
            sources: Names of sources to list even where no record speaks of them.

        Returns:
            One row per source, ``"scratch"`` among them where it was tried: columns standing (higher is better, mean
            about 0), standard_error and targets.
        """
        scores = self.scores()
        scores = scores[scores.index.get_level_values("target") != exclude_target]
        return standings(standardised(scores.reindex(columns=list(dict.fromkeys([*scores.columns, *sources])))))


@dataclass(frozen=True)
class RecordFolder:
    """One small file per record, named by its content: written by many processes, none in the way of another.

    Args:
        fs: File system.
        path: The folder.
    """

    fs: AbstractFileSystem
    path: str

    def write(self, records: Iterable[Record]) -> int:
        """Store records; an ``ArtifactError`` tells if the folder cannot be written.

        Returns:
            How many of them are new.
        """
        contents = {_file(data): data for data in map(encode_record, records)}
        new = contents.keys() - set(storage.list_folder(self.fs, self.path))
        for file in sorted(new):
            storage.write_bytes(self.fs, f"{self.path}/{file}", contents[file])
        return len(new)

    def read(self) -> Records:
        """Read all records that can be read, and warn of the others.

        Returns:
            The records, the oldest first.
        """
        files = [file for file in storage.list_folder(self.fs, self.path) if _FILE.fullmatch(file)]
        with ThreadPoolExecutor(16) as pool:  # a request each, where the library is remote
            found = list(pool.map(self._attempt, files))
        for error in found:
            if isinstance(error, ArtifactError):
                rank_zero_warn(f"A record is left out. {error}")
        return Records(sorted((x for x in found if isinstance(x, Record)), key=lambda record: record.created or ""))

    def _attempt(self, file: str) -> Record | ArtifactError:
        path = f"{self.path}/{file}"
        try:
            data = storage.read_bytes(self.fs, path)
            if _file(data) != file:
                return ArtifactError(f"Expected '{path}' as it was written, but its content differs. Remove the file.")
            return decode_record(data)
        except ArtifactError as error:
            return ArtifactError(f"'{path}': {error}")


def _settings(record: Record) -> str:
    return json.dumps(record.settings, sort_keys=True)


def _file(data: bytes) -> str:
    return f"{sha256(data).hexdigest()[:32]}.json"


def _from_table(text: str, path: str) -> list[Record]:
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    records = []
    try:
        missing = {"source", "target", "metric", "value"}.difference(reader.fieldnames or ())
        if missing:
            raise ValueError(
                f"Expected the columns source, target, metric and value, but {sorted(missing)} are missing."
            )
        for row in reader:
            records.append(from_row(row))
    except (ValueError, csv.Error) as error:
        raise ValueError(f"Line {reader.reader.line_num} of '{path}': {error} Nothing was imported.") from error
    return records

"""A record: what came of one finished fine-tuning, and its forms in JSON and in tables."""

import json
import math
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields
from datetime import datetime, timezone
from typing import Any

from pge_lightning import artifact
from pge_lightning.errors import ArtifactError

__all__ = ["COLUMNS", "SCRATCH", "Record", "decode_record", "encode_record", "from_row", "to_cell", "to_row"]

SCRATCH = "scratch"
_ESTIMATE = "estimates."


@dataclass(frozen=True)
class Record:
    """What one finished fine-tuning gave.

    Args:
        source: Name of the source it started from, or ``"scratch"``.
        target: Name of the data set it was done on.
        metric: Name of the metric.
        value: Its value, finite.
        higher_is_better: Direction of the metric; false for losses and errors.
        seed: Seed of the run, if there was one. Equal records count once, so runs that differ in nothing else need one.
        settings: How it was done, in JSON types: number of labels, of epochs. Only runs of equal target, metric and
            settings are compared with each other, so leave out what differs from run to run, such as seconds.
        estimates: Estimator to the value that it told of this pair before the fine-tuning.
        created: When, ISO 8601; ``None`` where it is not known.

    Raises:
        ValueError: If a field is not as described.

    Example:
        >>> Record("mnist", "usps", "val_acc", 0.91, seed=0, settings={"labels": 200}).value
        0.91
    """

    source: str
    target: str
    metric: str
    value: float
    higher_is_better: bool = True
    seed: int | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    estimates: Mapping[str, float] = field(default_factory=dict)
    created: str | None = field(default_factory=lambda: datetime.now(timezone.utc).isoformat(timespec="seconds"))

    def __post_init__(self) -> None:
        for name in ("source", "target", "metric"):
            text = getattr(self, name)
            _expect(isinstance(text, str) and text.strip() == text != "", f"`{name}` to be a name", text)
        _expect(_is_finite(self.value), "`value` to be a finite number", self.value)
        _expect(
            isinstance(self.higher_is_better, bool), "`higher_is_better` to be true or false", self.higher_is_better
        )
        seed = self.seed
        _expect(seed is None or type(seed) is int, "`seed` to be an integer or none", seed)
        _expect(_is_time(self.created), "`created` to be a time in ISO 8601 or none", self.created)
        for name in ("settings", "estimates"):
            _expect(isinstance(getattr(self, name), Mapping), f"`{name}` to be a mapping", getattr(self, name))
        for name, value in self.estimates.items():
            _expect(_is_finite(value), f"the estimate '{name}' to be a finite number", value)
        for name in self.settings:
            free = isinstance(name, str) and name not in COLUMNS and not name.startswith(_ESTIMATE) and name.strip()
            _expect(bool(free), f"settings beside {list(COLUMNS)}", name)
        object.__setattr__(self, "value", float(self.value))
        object.__setattr__(self, "settings", _plain(self.settings))
        object.__setattr__(self, "estimates", {name: float(value) for name, value in self.estimates.items()})


COLUMNS = tuple(entry.name for entry in fields(Record) if entry.name not in ("settings", "estimates"))
_WORDS = ("source", "target", "metric", "created")
_TRUTH = {"true": True, "1": True, "false": False, "0": False}


def encode_record(record: Record) -> bytes:
    """The JSON form: equal records give equal bytes."""
    content = {**asdict(record), "schema": artifact.SCHEMA, "kind": "record"}
    return json.dumps(content, sort_keys=True).encode()


def decode_record(data: bytes) -> Record:
    """Read what :func:`encode_record` wrote.

    Args:
        data: The JSON.

    Returns:
        The record.

    Raises:
        ArtifactError: If it is something else, or of a newer schema.
    """
    try:
        content = artifact.check_header(json.loads(data), kind="record")
        return Record(**{entry.name: content[entry.name] for entry in fields(Record)})
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise ArtifactError(f"Expected a record, but got a damaged one ({error!r}). Remove the file.") from error


def to_row(record: Record) -> dict[str, Any]:
    """The record as one row of a table: settings by their names, estimates as ``estimates.NAME``."""
    plain = {name: getattr(record, name) for name in COLUMNS}
    return {**plain, **record.settings, **{f"{_ESTIMATE}{name}": value for name, value in record.estimates.items()}}


def to_cell(column: str, value: Any) -> str:
    """A value of a row as text that :func:`from_row` reads back: words as they are, all else as JSON."""
    if column in COLUMNS and (value is None or column in _WORDS):
        return value or ""
    return value if isinstance(value, str) and _from_cell(value) == value.strip() == value != "" else json.dumps(value)


def from_row(row: Mapping[str | None, Any]) -> Record:
    """A record from one row of a table, as :class:`csv.DictReader` gives it.

    Args:
        row: Column to text; an empty cell says nothing.

    Returns:
        The record; one without the column ``created`` has no time.

    Raises:
        ValueError: If a cell is missing, is one too many, or does not hold what its column says.
    """
    if None in row or None in row.values():
        raise ValueError(f"Expected {len(row) - (None in row)} cells, but got more or fewer. Quote commas in names.")
    cells = {name: text.strip() for name, text in row.items() if name is not None and text.strip()}
    values = {name: cells[name] if name in _WORDS else _from_cell(cells[name]) for name in cells}
    known: dict[str, Any] = {name: values.pop(name, None) for name in ("source", "target", "metric", "value")}
    if "seed" in values:
        seed = values.pop("seed")  # pandas writes 0.0 where other rows have none
        known["seed"] = int(seed) if isinstance(seed, float) and seed.is_integer() else seed
    if "higher_is_better" in values:
        known["higher_is_better"] = _TRUTH.get(str(values.pop("higher_is_better")).lower(), "neither")
    estimates = {name.removeprefix(_ESTIMATE): values.pop(name) for name in cells if name.startswith(_ESTIMATE)}
    return Record(**known, created=values.pop("created", None), settings=values, estimates=estimates)


def _from_cell(text: str) -> Any:
    with suppress(ValueError):
        return json.loads(text, parse_constant=str)
    return text


def _expect(condition: bool, what: str, got: object) -> None:
    if not condition:
        raise ValueError(f"Expected {what}, but got {got!r}. Correct the record.")


def _is_finite(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _is_time(text: object) -> bool:
    if not isinstance(text, str):
        return text is None
    with suppress(ValueError):
        return bool(datetime.fromisoformat(text.removesuffix("Z")))
    return False


def _plain(settings: Mapping[str, Any]) -> dict[str, Any]:
    try:
        return dict(json.loads(json.dumps(dict(settings), allow_nan=False)))
    except (TypeError, ValueError) as error:
        raise ValueError(f"Expected settings in JSON types, but got: {error}. Convert them to plain values.") from error

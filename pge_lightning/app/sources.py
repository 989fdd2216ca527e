"""`pge task=library`: look after the sources and the records of fine-tunings."""

from collections.abc import Callable

from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from pge_lightning.app.build import build_library
from pge_lightning.errors import ArtifactError, PGEError
from pge_lightning.library import Library
from pge_lightning.source import Source

__all__ = ["library"]


def library(cfg: DictConfig) -> None:
    """Look after sources and records, as ``library.action`` says.

    Args:
        cfg: The whole configuration; ``library.source`` names the source, and may be null to list or verify all.
            ``library.file`` names the table of records to import, or to write.

    Raises:
        ValueError: If the action is unknown, or needs a source or a file and none is named.
        PGEError: If there is no such source, or one is damaged.
    """
    action, name, file = cfg.library.action, cfg.library.source, cfg.library.file
    if action not in (*ACTIONS, *RECORD_ACTIONS):
        raise ValueError(f"Expected `library.action` to be one of {[*ACTIONS, *RECORD_ACTIONS]}, but got {action!r}.")
    if name is None and action in ("show", "remove"):
        raise ValueError(f"Expected the name of a source to {action}, but got none. Pass `library.source=NAME`.")
    if file is None and action == "import":
        raise ValueError("Expected a table of records to import, but got none. Pass `library.file=FILE.csv`.")
    sources = build_library(cfg.library)
    if action in RECORD_ACTIONS:
        RECORD_ACTIONS[action](sources, file)
        return
    if name is not None and name not in sources.names():
        raise PGEError(f"Expected one of the sources {sources.names()} in '{sources.root}', but got '{name}'.")
    ACTIONS[action](sources, sources.names() if name is None else [name])


def _list(sources: Library, names: list[str]) -> None:
    table = Table(
        "source",
        "classes",
        "samples",
        "own metric",
        "signatures",
        "created",
        title=_count(len(names), "source", sources),
    )
    for name in names:
        try:
            table.add_row(name, *_describe(sources.open(name)))
        except ArtifactError as error:
            table.add_row(name, *[""] * 3, f"[red]damaged:[/red] {error}", "")
    Console().print(table)


def _show(sources: Library, names: list[str]) -> None:
    for name in names:
        source = sources.open(name)
        table = Table("fact", "value", title=f"Source '{name}' in '{sources.root}'")
        for fact, value in vars(source.facts).items():
            table.add_row(fact, "-" if value is None else str(value))
        for entry in source.signatures:
            table.add_row(f"signature '{entry.probe}'", f"{entry.budget or 'all'} samples, {entry.recipe}")
        Console().print(table)


def _verify(sources: Library, names: list[str]) -> None:
    table = Table("source", "state", title=_count(len(names), "source", sources))
    damaged = []
    for name in names:
        try:
            sources.verify(name)
        except ArtifactError as error:
            damaged.append(name)
            table.add_row(name, f"[red]damaged:[/red] {error}")
        else:
            table.add_row(name, "sound")
    Console().print(table)
    if damaged:
        raise PGEError(
            f"Expected {len(names)} sound sources, but {len(damaged)} are damaged: {', '.join(damaged)}. "
            "Restore their files, or collect them again with `library.overwrite=true`."
        )


def _remove(sources: Library, names: list[str]) -> None:
    for name in names:
        sources.remove(name)
        Console().print(f"Removed source '{name}' from '{sources.root}'.")


ACTIONS: dict[str, Callable[[Library, list[str]], None]] = {
    "list": _list,
    "show": _show,
    "verify": _verify,
    "remove": _remove,
}


def _import(sources: Library, file: str) -> None:
    new = sources.import_records(file)
    Console().print(f"Imported {new} new record{'' if new == 1 else 's'} from '{file}' into '{sources.root}'.")


def _records(sources: Library, file: str | None) -> None:
    records = sources.records()
    if file is not None:
        records.to_csv(file)
        Console().print(f"Wrote {len(records)} records to '{file}'.")
        return
    means = Table(
        "target", "source", "metric", "mean", "runs", "settings", title=_count(len(records), "record", sources)
    )
    for row in records.means().to_dict("records"):
        names = (str(row[key]) for key in ("target", "source", "metric"))
        means.add_row(*names, f"{row['value']:.4f}", str(row["seeds"]), str(row["settings"]))
    standing = Table(
        "source", "standing", "standard error", "targets", title="Mean standing over targets, higher is better"
    )
    for name, value, error, targets in records.standings().sort_values("standing", ascending=False).itertuples():
        standing.add_row(str(name), f"{value:+.2f}", f"{error:.2f}", str(targets))
    Console().print(means, standing)


RECORD_ACTIONS: dict[str, Callable[[Library, str], None]] = {"import": _import, "records": _records}


def _count(number: int, what: str, sources: Library) -> str:
    return f"{number} {what}{'' if number == 1 else 's'} in '{sources.root}'"


def _describe(source: Source) -> tuple[str, ...]:
    facts = source.facts
    return (
        "-" if facts.classes is None else str(facts.classes),
        str(facts.samples),
        "-" if facts.value is None else f"{facts.metric} {facts.value:.4f}",
        ", ".join(f"{entry.probe} {entry.budget or 'all'}" for entry in source.signatures),
        facts.created[:16],
    )

"""`pge task=library`: look after the sources."""

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
    """List, show, verify or remove sources, as ``library.action`` says.

    Args:
        cfg: The whole configuration; ``library.source`` names the source, and may be null to list or verify all.

    Raises:
        ValueError: If the action is unknown, or needs a source and none is named.
        PGEError: If there is no such source, or one is damaged.
    """
    action, name = cfg.library.action, cfg.library.source
    if action not in ACTIONS:
        raise ValueError(f"Expected `library.action` to be one of {list(ACTIONS)}, but got {action!r}.")
    if name is None and action in ("show", "remove"):
        raise ValueError(f"Expected the name of a source to {action}, but got none. Pass `library.source=NAME`.")
    sources = build_library(cfg.library)
    if name is not None and name not in sources.names():
        raise PGEError(f"Expected one of the sources {sources.names()} in '{sources.root}', but got '{name}'.")
    ACTIONS[action](sources, sources.names() if name is None else [name])


def _list(sources: Library, names: list[str]) -> None:
    table = Table("source", "classes", "samples", "own metric", "signatures", "created", title=_title(sources, names))
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
    table = Table("source", "state", title=_title(sources, names))
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


def _title(sources: Library, names: list[str]) -> str:
    return f"{len(names)} source{'' if len(names) == 1 else 's'} in '{sources.root}'"


def _describe(source: Source) -> tuple[str, ...]:
    facts = source.facts
    return (
        "-" if facts.classes is None else str(facts.classes),
        str(facts.samples),
        "-" if facts.value is None else f"{facts.metric} {facts.value:.4f}",
        ", ".join(f"{entry.probe} {entry.budget or 'all'}" for entry in source.signatures),
        facts.created[:16],
    )

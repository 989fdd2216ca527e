"""Opening: what a target's ranking begins with: sources, the units they share with the model, and the data."""

import copy
from collections.abc import Callable, Collection, Iterable, Mapping
from itertools import groupby
from typing import Any, TypeAlias, TypeVar

import lightning.pytorch as pl
from torch import nn
from torch.utils.data import DataLoader

from pge_lightning.collect.starts import shape_of
from pge_lightning.errors import PGEError
from pge_lightning.isolation import isolated_randomness, plain
from pge_lightning.library import Library
from pge_lightning.probe import Probe
from pge_lightning.signature import Signature
from pge_lightning.source import Source

__all__ = ["Data", "agreeing_units", "agrees", "attempt", "open_sources", "training_data"]

S = TypeVar("S")
T = TypeVar("T")
Data: TypeAlias = pl.LightningDataModule | DataLoader[Any] | Iterable[Any]


def attempt(action: Callable[[S], T], of: S) -> T | Exception:
    """The result of an action on one source, or the reason why there is none.

    Args:
        action: What to do.
        of: What it takes.

    Returns:
        Its result or its error.
    """
    try:
        return action(of)
    except (PGEError, ValueError, OSError) as error:
        return error


def agreeing_units(model: nn.Module, sources: Iterable[Source | Exception]) -> frozenset[str] | None:
    """The longest set of units of a source that the model has too, name by name and shape by shape.

    Args:
        model: The model to be fine-tuned.
        sources: Opened sources; those that could not be opened have no say.

    Returns:
        Names of units; ``None`` where no source agrees.

    Raises:
        PGEError: If several sets are the longest.
    """
    own = {name: shape_of(unit) for name, unit in plain(model).named_parameters()}
    found: dict[frozenset[str], list[Source]] = {}
    for source in [source for source in sources if isinstance(source, Source) and source.signatures]:
        stored = attempt(source.load_shapes, source.signatures[0])
        shapes = stored if isinstance(stored, dict) else {}
        if shapes and all(own.get(name, 0) in (None, shape) for name, shape in shapes.items()):
            found.setdefault(frozenset(shapes), []).append(source)
    # Shapes are read without a look at the values, so that one signature of those that decide is read as a whole.
    whole = (units for units in sorted(found, key=len, reverse=True) if any(map(_reads, found[units])))
    longest = next((list(sets) for _, sets in groupby(whole, key=len)), [])
    if len(longest) > 1:
        raise PGEError(
            f"Expected one longest set of agreeing units, but {len(longest)} sets of {len(longest[0])} agree. "
            "Name the transferred part with `encoder=`."
        )
    return longest[0] if longest else None


def _reads(source: Source) -> bool:
    return isinstance(attempt(source.load_signature, source.signatures[0]), Signature)


def open_sources(library: Library, exclude: Collection[str]) -> dict[str, Source | Exception]:
    """Open the sources of a library.

    Args:
        library: The library.
        exclude: Names to leave out.

    Returns:
        Name to the opened source, or to what went wrong in opening it.

    Raises:
        PGEError: If there are none.
    """
    names = [name for name in library.names() if name not in exclude]
    if not names:
        beside = f" beside the excluded {sorted(exclude)}" if exclude else ""
        raise PGEError(
            f"Expected sources in the library '{library.root}', but there are none{beside}. "
            "Train one with PrincipalGradientCallback."
        )
    return {name: attempt(library.open, name) for name in names}


def agrees(source: Source, probe: Probe, rung: int, shapes: Mapping[str, list[int]]) -> bool:
    """Whether a source holds a rung; one that could not be compared at any other rung either has no say.

    Args:
        source: The source.
        probe: The probe.
        rung: The rung.
        shapes: Unit of the target to its shape.

    Returns:
        Whether it does, or has no say.
    """
    recipe = probe.recipe
    entries = [entry for entry in source.signatures if entry.recipe == recipe]
    if rung in {entry.budget for entry in entries}:
        return True
    alike = [entry for entry in entries if attempt(source.load_shapes, entry) == shapes]
    return not any(isinstance(attempt(source.load_signature, entry), Signature) for entry in alike)


def training_data(data: Data) -> tuple[Any, pl.LightningDataModule | None]:
    """The training loader, and the data module it came from; the user's own data module is not set up.

    Args:
        data: A data module, a loader, or an iterable of batches.

    Returns:
        Both; ``None`` where there is no data module.
    """
    if not isinstance(data, pl.LightningDataModule):
        return data, None
    with isolated_randomness():
        # Shared, not copied: a Trainer that used the data module before holds models, loggers and locks.
        datamodule = copy.deepcopy(data, {id(data.trainer): data.trainer})
        datamodule.prepare_data()
        datamodule.setup("fit")
        return datamodule.train_dataloader(), datamodule

"""Draws: every random operation is seeded by the weight unit that its numbers end in."""

import gc
import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn.parameter import is_lazy
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pge_lightning.isolation import derive_seed, seed_all, seed_torch

__all__ = ["KeyedDraws", "SeedOf", "drop", "module_state", "settle"]

SeedOf: TypeAlias = Callable[[str], int]
Label: TypeAlias = str | int

_HEAVY = 2**26  # bytes, from which on a search for garbage takes less time than drawing the weights


def module_state(module: nn.Module) -> dict[str, Tensor]:
    """A module's parameters and buffers by name, each tensor once.

    Args:
        module: Any module.

    Returns:
        Name to tensor, also buffers that no ``state_dict`` holds.
    """
    return dict(module.named_parameters()) | dict(module.named_buffers())


def _storages(values: Any) -> list[StorageWeakRef]:
    """What the tensors among some values are stored in; a weak reference keeps no memory, and no other takes its id."""
    tensors = [value for value in tree_leaves(values) if isinstance(value, Tensor) and not is_lazy(value)]
    tensors = [tensor for tensor in tensors if tensor.layout is torch.strided]
    return [StorageWeakRef(tensor.untyped_storage()) for tensor in tensors]  # type: ignore[no-untyped-call]  # as above


def _written(func: Any, args: Any, kwargs: Any) -> list[Any]:
    """The arguments that an operation changes in place."""
    values = {argument.name: value for argument, value in zip(func._schema.arguments, args, strict=False)} | kwargs
    changed = [argument.name for argument in func._schema.arguments if argument.is_write]
    return [values[name] for name in changed if values.get(name) is not None]


class KeyedDraws(TorchDispatchMode):  # type: ignore[no-untyped-call]  # PyTorch leaves it untyped
    """Seed each random operation by the unit that it fills: order of construction and neighbours are mute.

    Every storage gets a label, which says how it came about: from which storage, or from nothing, by which operation,
    as which of its kind. What a unit is called shows only at the end of its constructor, so the labels of one run name
    the draws of the next (:func:`settle`).

    Args:
        seed_of: The seed of a unit; of the empty name for draws that end in no unit.
        names: Label to unit, from an earlier run.
        known: Units whose names are known before the run.
        fixed: Tensors that the run cannot write: operations on them are left out.
    """

    def __init__(
        self,
        seed_of: SeedOf,
        names: Mapping[Label, str],
        known: Mapping[str, Tensor] | None = None,
        fixed: Mapping[str, Tensor] | None = None,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # PyTorch leaves it untyped
        self.seed_of, self.names, self.part = seed_of, names, ""
        self.labels: dict[StorageWeakRef, Label] = {}
        for name, unit in (known or {}).items():
            for storage in _storages(unit):
                self.labels.setdefault(storage, name)
        self.fixed = set(_storages(list((fixed or {}).values())))
        self.parents: dict[Label, Label] = {}
        self.flows: dict[Label, dict[Label, None]] = {}
        self.seen: dict[tuple[Label, str], int] = {}
        self.drawn: dict[Label, str | None] = {}

    def enter(self, part: str) -> None:
        """From here on, draws belong to one part of the module, whatever was drawn before.

        Args:
            part: The part's name.
        """
        self.part = part
        self.seen.clear()
        seed_all(derive_seed(self.seed_of(""), part))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        written = _written(func, args, kwargs)
        if self.fixed.intersection(_storages(written)):
            return written[0]
        origins = [self.labels[storage] for storage in _storages((written, args, kwargs)) if storage in self.labels]
        label = origins[0] if written and origins else self._child(origins[0] if origins else self.part, str(func))
        if torch.Tag.nondeterministic_seeded in func.tags:
            self._seed(label, str(func))
        result = func(*args, **kwargs)
        for storage in _storages(result):
            end = self.labels.setdefault(storage, label)
            for origin in origins:
                self.flows.setdefault(origin, {})[end] = None
        return result

    def _child(self, parent: Label, operation: str) -> Label:
        """The label of a new storage."""
        count = self.seen[parent, operation] = self.seen.get((parent, operation), 0) + 1
        label = derive_seed(self.part, parent, operation, count)
        self.parents[label] = parent
        return label

    def _seed(self, label: Label, operation: str) -> None:
        name = self.drawn[label] = next((self.names[own] for own in self._ancestry(label) if own in self.names), None)
        key = label if name is None else name
        count = self.seen[key, f"draw {operation}"] = self.seen.get((key, f"draw {operation}"), 0) + 1
        seed = self.seed_of(name or "")
        seed_torch(derive_seed(derive_seed(seed, self.part) if self.part else seed, operation, key, count))

    def _ancestry(self, label: Label) -> Iterator[Label]:
        while True:
            yield label
            if label not in self.parents:
                return
            label = self.parents[label]

    def _ends(self, label: Label, units: Mapping[Label, str]) -> str | None:
        """The nearest unit that a storage is, flows into, or comes from."""
        reached = dict.fromkeys([label])
        for own in (queue := [label]):
            if own in units:
                return units[own]
            queue += [end for end in self.flows.get(own, ()) if end not in reached]
            reached.update(dict.fromkeys(queue))
        return next((units[own] for own in self._ancestry(label) if own in units), None)

    def learn(self, module: nn.Module) -> dict[Label, str] | None:
        """Which label stands for which unit, once the module is there; ``None`` if that was known to every draw.

        Args:
            module: What the run has made.

        Returns:
            Label to unit, for the next run.
        """
        units: dict[Label, str] = {}
        for name, unit in module_state(module).items():
            for storage in _storages(unit):
                if storage in self.labels:
                    units.setdefault(self.labels[storage], name)
        ends = {label: self._ends(label, units) for label in self.drawn}
        if ends == self.drawn:
            return None
        return units | {label: name for label, name in ends.items() if name is not None}


def drop(made: list[nn.Module]) -> None:
    """Forget modules now; those that have saved hyper-parameters lie in reference cycles, which stay for a while.

    Args:
        made: Holds the only reference to each, and is empty afterwards.
    """
    heavy = sum(value.nbytes for module in made for value in module.parameters() if not is_lazy(value)) > _HEAVY
    left = [weakref.ref(module) for module in made]
    made.clear()
    if heavy and any(reference() is not None for reference in left):
        gc.collect()


def settle(
    run: Callable[[KeyedDraws], nn.Module], draws: Callable[[Mapping[Label, str]], KeyedDraws], names: dict[Label, str]
) -> nn.Module:
    """Run code that draws weights until each draw was seeded by the unit that it ends in, which takes two runs at most.

    Args:
        run: Makes a module under given draws.
        draws: Makes the draws from labels' names.
        names: What earlier calls have learnt; this call adds to it.

    Returns:
        The module of the last run.
    """
    for _ in range(2):
        current = draws(names)
        with current:
            made = [run(current)]
        learnt = current.learn(made[0])
        if learnt is None:
            return made.pop()
        names.clear()
        names.update(learnt)
        drop(made)
    with (current := draws(names)):
        return run(current)

"""Starts: restarted copies of the user's module, which can be made again whenever they are needed."""

from collections.abc import Callable
from itertools import chain

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from pge_lightning.encoder import EncoderSpec, encoder_parameters, encoder_units
from pge_lightning.errors import PGEError
from pge_lightning.isolation import derive_seed, isolated_copy, isolated_randomness, plain
from pge_lightning.isolation.memory import release
from pge_lightning.probe import Probe
from pge_lightning.restart import Factory, hash_start, make_initialiser, restart

__all__ = ["Starts", "real", "shape_of"]


def real(value: Tensor) -> Tensor:
    """A unit's values as real numbers: complex ones get a last dimension of two."""
    return torch.view_as_real(value) if value.is_complex() else value


def shape_of(unit: nn.Parameter) -> list[int] | None:
    """The shape of a unit's values as real numbers; ``None`` while that of a lazy one is unknown."""
    return None if is_lazy(unit) else list(real(unit.detach()).shape)


class Starts:
    """What every restart of one module begins with.

    Args:
        module: The user's module; only copies of it are touched.
        probe: Gives the seeds, and whether the encoder is paired.
        encoder: Names the transferred part: submodule, pattern over parameter names, or callable.
        thaw: Whether frozen parameters of the encoder count as trainable.

    Attributes:
        units: Names of the encoder's trainable parameters.
        lazy: Whether some parameters get their shapes from a first batch.
        finish: Called with every start and the seed of its head, if it is set.
        shapes: Unit to the shape of its real values, after :meth:`check`.
        frozen: Frozen parameter to a hash of its values, after :meth:`check`; those that follow restarted ones have
            none.

    Raises:
        PGEError: If there is no trainable encoder.
    """

    def __init__(self, module: nn.Module, probe: Probe, encoder: EncoderSpec = None, thaw: bool = False) -> None:
        self.module, self.probe, self.thaw = plain(module), probe, thaw
        self.units = encoder_units(self.module, encoder, thaw)
        self.shared = list(encoder_parameters(self.module, encoder))
        self.lazy = any(is_lazy(value) for value in chain(self.module.parameters(), self.module.buffers()))
        self.finish: Callable[[nn.Module, int], None] | None = None
        self.shapes: dict[str, list[int]] = {}
        self.frozen: dict[str, str] = {}

    def check(self, factory: Factory | None = None, run_once: Callable[[nn.Module], None] | None = None) -> None:
        """Make one start, to learn shapes and what is frozen.

        Args:
            factory: Builds a fresh module of the same kind, where re-initialisation needs help.
            run_once: Takes one training step with a copy; called where shapes are still unknown.

        Raises:
            PGEError: If a unit is re-initialised by nothing, or a shape stays unknown.
        """
        self._run_once = run_once
        with isolated_randomness(), torch.inference_mode(mode=False):
            copied = self._copy()
            before = hash_start(_frozen(copied))
            self._initialise = make_initialiser(copied, factory, self.shared)
            restart(copied, self.shared, self._initialise, seed=0, head_seed=0)
        self.shapes = {name: list(value.shape) for name, value in self.values(copied).items()}
        after = hash_start(_frozen(copied))
        self.frozen = {name: digest for name, digest in before.items() if after[name] == digest}
        release(copied)

    def make(self, k: int, data: str) -> nn.Module:
        """A restarted copy; the same whenever it is made.

        Args:
            k: Number of the restart.
            data: The data set's fingerprint, which seeds the head, and the encoder where it is not paired.

        Returns:
            The copy, on the CPU.
        """
        seed, paired = self.probe.seed, self.probe.paired
        head_seed = derive_seed(seed, "head", k, data)
        encoder_seed = derive_seed(seed, "encoder", k) if paired else derive_seed(head_seed, "encoder")
        with torch.inference_mode(mode=False):
            copied = self._copy()
            restart(copied, self.shared, self._initialise, encoder_seed, head_seed)
        if self.finish is not None:
            self.finish(copied, head_seed)
        return copied

    def values(self, copied: nn.Module) -> dict[str, Tensor]:
        """The units of a copy as real numbers, sharing storage with it."""
        named = dict(copied.named_parameters())
        return {name: real(named[name].detach()) for name in self.units}

    def hashes(self, copied: nn.Module) -> dict[str, str]:
        """Unit to a hash of its values in a copy."""
        return hash_start(self.values(copied))

    def hashes_of(self, k: int, data: str) -> dict[str, str]:
        """Unit to a hash of its values in a start that is not kept."""
        copied = self.make(k, data)
        hashes = self.hashes(copied)
        release(copied)
        return hashes

    def per_unit(self, hashes: list[dict[str, str]]) -> dict[str, tuple[str, ...]]:
        """The hashes of all restarts, unit by unit; empty without restarts."""
        return {name: tuple(hashed[name] for hashed in hashes) for name in self.units if hashes}

    def _copy(self) -> nn.Module:
        copied = isolated_copy(self.module)
        if self.lazy:
            copied = self._with_shapes(copied)
        named = dict(copied.named_parameters())
        for name in self.units:
            named[name].requires_grad_(True)
        return copied

    def _with_shapes(self, copied: nn.Module) -> nn.Module:
        """Give a copy the lazy parts of another one, which has taken a step; nothing else of it has changed."""
        state = chain(copied.named_parameters(remove_duplicate=False), copied.named_buffers(remove_duplicate=False))
        owners = {name.rpartition(".")[0] for name, value in state if is_lazy(value)}
        other = isolated_copy(self.module)
        if self._run_once is not None:
            self._run_once(other)
        other.cpu()
        if left := [name for name, value in other.named_parameters() if is_lazy(value)]:
            raise PGEError(
                f"Expected a step to give all lazy parameters their shapes, but {', '.join(left)} took no part in it. "
                "Run a batch through them before, or take them out of the module."
            )
        for owner in owners - {""}:
            parent, _, child = owner.rpartition(".")
            setattr(copied.get_submodule(parent), child, other.get_submodule(owner))
        return other if "" in owners else copied


def _frozen(module: nn.Module) -> dict[str, Tensor]:
    """Frozen parameters, but for the originals of what PEFT trains whole: those rest, and heads differ in them."""
    wrappers = (name for name, part in module.named_modules() if hasattr(part, "modules_to_save"))
    resting = tuple(f"{name}.original_module.".lstrip(".") for name in wrappers)
    named = {name: unit.detach() for name, unit in module.named_parameters() if not unit.requires_grad}
    return {name: value for name, value in named.items() if not name.startswith(resting)}

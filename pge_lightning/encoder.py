"""Encoder and head: which weight units are transferred, and which stay behind."""

from collections.abc import Callable, Iterable
from fnmatch import fnmatchcase
from typing import TypeAlias

from torch import Tensor, nn

from pge_lightning.errors import PGEError

__all__ = ["EncoderSpec", "encoder_state", "encoder_units"]

EncoderSpec: TypeAlias = str | Callable[[nn.Module], Iterable[str]] | None

CONVENTIONAL = ("encoder", "backbone", "feature_extractor", "features")


def _conventional(module: nn.Module) -> str:
    """The submodule that carries a customary name, where there is exactly one; else an error with the choices."""
    owners = {name for name, part in module.named_modules() if next(part.parameters(), None) is not None}
    found = [name for name in owners if name.rsplit(".", 1)[-1] in CONVENTIONAL]
    outermost: list[str] = sorted(name for name in found if not any(name.startswith(f"{other}.") for other in found))
    if len(outermost) == 1:
        return outermost[0]
    children = [name for name, _ in module.named_children()]
    raise PGEError(
        f"Expected one submodule named {', '.join(CONVENTIONAL)} in {type(module).__name__}, but found {outermost}. "
        f"Name the transferred part with `encoder=`: a submodule (here {children}), a pattern over parameter names "
        "such as '*.backbone.*', or a callable that returns parameter names."
    )


def _selects(module: nn.Module, encoder: EncoderSpec) -> Callable[[str], bool]:
    """Turn the user's naming into a test over parameter and buffer names."""
    if callable(encoder):
        names = set(encoder(module))
        owners = {name.rpartition(".")[0] for name in names}
        parameters = {name for name, _ in module.named_parameters(remove_duplicate=False)}
        return lambda name: name in names if name in parameters else name.rpartition(".")[0] in owners
    pattern = _conventional(module) if encoder is None else encoder
    if pattern in dict(module.named_modules()):
        prefix = f"{pattern}." if pattern else ""
        return lambda name: name.startswith(prefix)
    return lambda name: fnmatchcase(name, pattern)


def encoder_units(module: nn.Module, encoder: EncoderSpec = None) -> list[str]:
    """Names of the trainable parameters that are transferred.

    Args:
        module: The whole module, encoder and head.
        encoder: A submodule's name, a shell-style pattern over parameter names, or a callable that takes the module
            and returns parameter names. ``None`` looks for one submodule with a customary name.

    Returns:
        The names in the module's own order.

    Raises:
        PGEError: If nothing, or nothing trainable, answers to the name.
    """
    selects = _selects(module, encoder)
    named = [(name, unit) for name, unit in module.named_parameters() if selects(name)]
    units = [name for name, unit in named if unit.requires_grad and unit.is_floating_point()]
    if not units:
        found, cure = "none", f"Name a part that exists, of {[name for name, _ in module.named_children()]}"
        if named:
            found, cure = f"{len(named)} frozen ones", "Unfreeze them while the signature is collected"
        raise PGEError(
            f"Expected trainable encoder parameters for encoder={encoder!r} in {type(module).__name__}, "
            f"but got {found}. {cure}."
        )
    return units


def encoder_state(module: nn.Module, encoder: EncoderSpec = None) -> dict[str, Tensor]:
    """The encoder's parameters and persistent buffers, by their names inside the module.

    Args:
        module: The whole module, encoder and head.
        encoder: As in :func:`encoder_units`.

    Returns:
        Name to tensor, sharing storage with the module.

    Raises:
        PGEError: As in :func:`encoder_units`.
    """
    encoder_units(module, encoder)
    selects = _selects(module, encoder)
    return {name: value for name, value in module.state_dict().items() if selects(name)}

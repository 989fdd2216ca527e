"""Encoder and head: which weight units are transferred, and which stay behind."""

from collections.abc import Callable, Iterable
from fnmatch import fnmatchcase
from typing import TypeAlias

from torch import Tensor, nn

from pge_lightning.errors import PGEError
from pge_lightning.isolation import plain

__all__ = [
    "HEAD",
    "EncoderSpec",
    "default_encoder",
    "encoder_parameters",
    "encoder_state",
    "encoder_units",
    "linear_head",
]

# In this order a command line takes an import path for the function it names, before it takes it for a pattern.
EncoderSpec: TypeAlias = Callable[[nn.Module], Iterable[str]] | str | None

# What a head is called among the tensors that a library may hold of a source.
HEAD = "head"

CUSTOMARY = ("encoder", "backbone", "feature_extractor", "features")


def default_encoder(module: nn.Module) -> str:
    """One submodule with a customary name, or the pretrained base of one Hugging Face model.

    Args:
        module: The whole module, encoder and head.

    Returns:
        Its name.

    Raises:
        PGEError: If there is none, or more than one.
    """
    owners = {name for name, part in module.named_modules() if next(part.parameters(), None) is not None}
    customary = {name for name in owners if name.rsplit(".", 1)[-1] in CUSTOMARY}
    bases = _pretrained_bases(module)
    found = {name for name in customary if not any(_within(name, model) for model in bases)}
    found |= {base for model, base in bases.items() if not any(_within(model, name) or model == name for name in found)}
    outermost: list[str] = sorted(name for name in found if not any(_within(name, other) for other in found))
    if len(outermost) == 1:
        return outermost[0]
    children = [name for name, _ in module.named_children()]
    raise PGEError(
        f"Expected one submodule named {', '.join(CUSTOMARY)}, or one pretrained Hugging Face model, in "
        f"{type(module).__name__}, but found {outermost}. Name the transferred part with `encoder=`: a submodule (here "
        f"{children}), a pattern over parameter names such as '*.backbone.*', or a callable that returns parameter "
        "names."
    )


def _within(name: str, other: str) -> bool:
    """Whether a submodule lies inside of another one."""
    return name.startswith(f"{other}.") or (other == "" != name)


def _pretrained_bases(module: nn.Module) -> dict[str, str]:
    """Outermost Hugging Face models whose base is evident, and their bases: a model without a head is its own."""
    # Told by what their class says of itself, so that transformers need not be there.
    bases: dict[str, str] = {}
    for name, part in module.named_modules():
        prefix = getattr(type(part), "base_model_prefix", None)
        if not isinstance(prefix, str) or not hasattr(part, "config") or any(_within(name, outer) for outer in bases):
            continue
        if prefix in part._modules:
            bases[name] = f"{name}.{prefix}".lstrip(".")
        elif type(part).__name__.endswith("Model"):  # others have a head, but do not say where it is
            bases[name] = name
    return bases


def _selects(module: nn.Module, encoder: EncoderSpec) -> Callable[[str], bool]:
    """Turn the user's naming into a test over parameter and buffer names."""
    if callable(encoder):
        names = set(encoder(module))
        owners = {name.rpartition(".")[0] for name in names}
        parameters = {name for name, _ in module.named_parameters(remove_duplicate=False)}
        return lambda name: name in names if name in parameters else name.rpartition(".")[0] in owners
    pattern = default_encoder(module) if encoder is None else encoder
    if pattern in dict(module.named_modules()):
        prefix = f"{pattern}." if pattern else ""
        return lambda name: name.startswith(prefix)
    return lambda name: fnmatchcase(name, pattern)


def encoder_units(module: nn.Module, encoder: EncoderSpec = None, thaw: bool = False) -> list[str]:
    """Names of the trainable parameters that are transferred.

    Args:
        module: The whole module, encoder and head.
        encoder: A submodule's name, a shell-style pattern over parameter names, or a callable that takes the module
            and returns parameter names. ``None`` looks for one submodule with a customary name, or one Hugging Face
            model.
        thaw: Whether frozen parameters count as trainable, for a module that is thawed while it trains.

    Returns:
        The names in the module's own order; of a tied parameter, the first.

    Raises:
        PGEError: If nothing, or nothing trainable, answers to the name.
    """
    module = plain(module)
    named = encoder_parameters(module, encoder)
    numbers = {name: unit for name, unit in named.items() if unit.is_floating_point() or unit.is_complex()}
    units = [name for name, unit in numbers.items() if unit.requires_grad or thaw]
    if not units:
        raise PGEError(
            f"Expected trainable encoder parameters for encoder={encoder!r} in {type(module).__name__}, but got "
            f"{len(named)} frozen ones. Unfreeze them while the signature is collected, or name another part."
        )
    return units


def encoder_parameters(module: nn.Module, encoder: EncoderSpec = None) -> dict[str, nn.Parameter]:
    """All parameters that are transferred, trainable or not.

    Args:
        module: The whole module, encoder and head.
        encoder: As in :func:`encoder_units`.

    Returns:
        Name to parameter, in the module's own order; of a tied one, the first name.

    Raises:
        PGEError: If no parameter answers to the name.
    """
    module = plain(module)
    _check_built(module)
    selects = _selects(module, encoder)
    chosen = {id(unit) for name, unit in module.named_parameters(remove_duplicate=False) if selects(name)}
    if not chosen:
        raise PGEError(
            f"Expected encoder parameters for encoder={encoder!r} in {type(module).__name__}, but got none. "
            f"Name a part that exists, of {[name for name, _ in module.named_children()]}."
        )
    return {name: unit for name, unit in module.named_parameters() if id(unit) in chosen}


def _check_built(module: nn.Module) -> None:
    if next(module.parameters(), None) is None:
        raise PGEError(
            f"Expected a module with parameters, but {type(module).__name__} has none. If they are made in "
            "`configure_model`, call it first; under a Trainer it may be called again."
        )


def encoder_state(module: nn.Module, encoder: EncoderSpec = None) -> dict[str, Tensor]:
    """The encoder's parameters and persistent buffers, by their names inside the module.

    Args:
        module: The whole module, encoder and head.
        encoder: As in :func:`encoder_units`.

    Returns:
        Name to tensor, sharing storage with the module.

    Raises:
        PGEError: If nothing answers to the name.
    """
    module = plain(module)
    encoder_parameters(module, encoder)
    selects = _selects(module, encoder)
    return {name: value for name, value in module.state_dict().items() if selects(name)}


def linear_head(module: nn.Module, encoder: EncoderSpec = None) -> dict[str, Tensor]:
    """The head, where it is one linear layer: what some scores of a source's predictions run on its features.

    Args:
        module: The whole module, encoder and head.
        encoder: As in :func:`encoder_units`.

    Returns:
        ``weight`` ``[classes, d]`` and, if it has one, ``bias`` ``[classes]``; nothing where the head is anything else.
    """
    module = plain(module)
    transferred = {id(unit) for unit in encoder_parameters(module, encoder).values()}
    own = {id(unit) for unit in module.parameters()} - transferred
    layers = (part for part in module.modules() if isinstance(part, nn.Linear))
    found = next((part for part in layers if {id(unit) for unit in part.parameters()} == own), None)
    return {} if found is None else {name: unit.detach() for name, unit in found.named_parameters()}

"""Resets: what modules have no ``reset_parameters`` for, and where users add resets for parts of their own kinds."""

import inspect
import re
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn

from pge_lightning.errors import PGEError

__all__ = ["is_token", "register_reset", "registered_reset", "reset_adapters", "reset_tokens"]

Part = TypeVar("Part", bound=nn.Module)
REGISTERED: dict[type[nn.Module], Callable[[Any], object]] = {}
TOKEN = re.compile(
    r"(.*_)?(tokens?|quer(y|ies)|latents?|prompts?|pos(ition(al)?)?_?(emb|embed|embeds|embeddings?|encodings?)"
    r"|(cls|class|mask|dist|query|time|type|segment|modality)_?(emb|embeds?|embeddings?))"
)


def register_reset(kind: type[Part], reset: Callable[[Part], object]) -> None:
    """Say how parts of one's own kind are re-initialised, where the class cannot define ``reset_parameters``.

    A registered reset stands in the place of the part's own, and of what a Hugging Face model around the part would do
    with it. Like all resets it runs after those of the part's children; random operations in it are seeded by the unit
    that they fill.

    Args:
        kind: The class of the parts; a subclass's own registration overrules it.
        reset: Takes a part and sets its parameters in place, under ``torch.no_grad``.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> class Scale(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.weight = nn.Parameter(torch.ones(3))
        >>> register_reset(Scale, lambda part: nn.init.ones_(part.weight))
    """
    REGISTERED[kind] = reset


def registered_reset(part: nn.Module) -> Callable[[Any], object] | None:
    """What was registered for a part's class, or for its nearest base.

    Args:
        part: A part of a module.

    Returns:
        A function of the part.
    """
    return next((REGISTERED[kind] for kind in type(part).__mro__ if kind in REGISTERED), None)


def is_token(name: str) -> bool:
    """Whether a bare parameter has a customary name of class, position, mask or query tokens.

    Args:
        name: The parameter's name inside the module.

    Returns:
        Whether it has.

    >>> [is_token(name) for name in ("vit.cls_token", "encoder.pos_embed", "register_tokens.0", "scale", "weight")]
    [True, True, True, False, False]
    """
    words = [word for word in name.split(".") if not word.isdigit()]
    return TOKEN.fullmatch(words[-1]) is not None


def reset_tokens(units: dict[str, Tensor]) -> None:
    """Draw bare tokens from the field's customary distribution, and say so.

    Args:
        units: Name to parameter, filled in place from a normal distribution of standard deviation 0.02, cut off at 2.
    """
    for unit in units.values():
        nn.init.trunc_normal_(unit, std=0.02)
    if units:
        rank_zero_warn(
            f"Nothing in the module resets {', '.join(units)}: drawn from a truncated normal distribution with "
            "standard deviation 0.02, as tokens usually are. If the module's own start is another, give a `factory` "
            "that builds it."
        )


def _adapters(module: nn.Module) -> Iterator[tuple[nn.Module, str, Any]]:
    """PEFT's layers under a module, each with its active adapters and their settings; the package stays optional."""
    settings: dict[str, Any] = {}
    for part in module.modules():
        found = vars(part).get("peft_config")
        settings = settings | dict(found) if isinstance(found, dict) else settings
        active: Any = getattr(part, "active_adapters", ()) if hasattr(part, "base_layer") else ()
        yield from ((part, adapter, settings.get(adapter)) for adapter in active)


def _reset_adapter(layer: nn.Module, adapter: str, settings: Any) -> None:
    """Call a layer's own ``reset_..._parameters``, which takes the adapter's name and settings of its configuration."""
    for name in dir(type(layer)):
        if re.fullmatch(r"reset_(?!parameters)\w+_parameters", name):
            reset = getattr(layer, name)
            wanted = [argument for argument in inspect.signature(reset).parameters if argument != "adapter_name"]
            try:
                reset(adapter, *(getattr(settings, argument) for argument in wanted if hasattr(settings, argument)))
            except ValueError as error:
                raise PGEError(
                    "Expected an adapter that is drawn at random, but got one that PEFT computes from base weights or "
                    f"from data ({error}). Take another start, such as `init_lora_weights=True`."
                ) from error


def _reset_magnitude(layer: Any, adapter: str, settings: Any) -> None:
    """DoRA's magnitudes are norms of the layer's weight, and follow it."""
    magnitudes: Any = getattr(layer, "lora_magnitude_vector", {})
    if adapter in magnitudes:
        current = magnitudes[adapter]
        layer.lora_variant[adapter].init(layer, adapter_name=adapter, config=settings)
        current.weight.copy_(magnitudes[adapter].weight)
        magnitudes[adapter] = current


def reset_adapters(module: nn.Module, *, drawn: bool = True) -> None:
    """Start PEFT's adapters as PEFT starts them, from the base weights that the module has now.

    Args:
        module: Any module; PEFT's layers in it are changed in place.
        drawn: Whether to draw what is random, too, or only to set what follows from other weights.
    """
    for layer, adapter, settings in _adapters(module):
        if drawn:
            _reset_adapter(layer, adapter, settings)
        _reset_magnitude(layer, adapter, settings)

"""Encoder features: what the encoder makes of a batch, without head, labels or loss."""

import inspect
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeAlias

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from pge_lightning.encoder import EncoderSpec, default_encoder, encoder_parameters
from pge_lightning.errors import PGEError
from pge_lightning.isolation.unwrap import plain

__all__ = ["FeaturesFn", "encoder_module", "features_of", "inputs_of", "labels_of"]

FeaturesFn: TypeAlias = Callable[[nn.Module, Any], Tensor]

LABELS = ("labels", "label", "targets", "target", "y")


def inputs_of(batch: Any) -> Any:
    """What of a batch the model sees.

    Args:
        batch: A tuple or list, whose first entry it is; a mapping, of which all is seen but labels; or inputs alone.

    Returns:
        The inputs.

    Example:
        >>> inputs_of(("images", "classes")), inputs_of({"tokens": 1, "labels": 2}), inputs_of("images")
        ('images', {'tokens': 1}, 'images')
    """
    if isinstance(batch, Mapping):
        return {name: value for name, value in batch.items() if name not in LABELS}
    return batch[0] if isinstance(batch, (tuple, list)) and batch else batch


def labels_of(batch: Any) -> Any | None:
    """What of a batch is to be told from the inputs.

    Args:
        batch: A tuple or list, whose second entry it is; a mapping with ``labels``, ``label``, ``targets``, ``target``
            or ``y``; an object with an attribute ``y``, such as a graph; or inputs alone.

    Returns:
        The labels; ``None`` where there are none.

    Example:
        >>> labels_of(("images", "classes")), labels_of({"tokens": 1, "labels": 2}), labels_of("images")
        ('classes', 2, None)
    """
    if isinstance(batch, Mapping):
        return next((batch[name] for name in LABELS if name in batch), None)
    if isinstance(batch, (tuple, list)):
        return batch[1] if len(batch) > 1 else None
    return getattr(batch, "y", None)


def encoder_module(module: nn.Module, encoder: EncoderSpec = None) -> str:
    """The submodule that is the encoder, or that holds it.

    Args:
        module: The whole module, encoder and head.
        encoder: As in :func:`~pge_lightning.encoder.encoder_units`.

    Returns:
        The name of the submodule that was named. Where parameters were named instead, that of the outermost submodule
        that holds these and no others; where there is none, of the innermost one that holds all of them.

    Raises:
        PGEError: If no parameter answers to the name.

    Example:
        >>> model = nn.Sequential(nn.Sequential(nn.Linear(4, 8), nn.ReLU()), nn.Linear(8, 2))
        >>> encoder_module(model, "0"), encoder_module(model, "0.*"), encoder_module(model, "[01]*")
        ('0', '0', '')
    """
    module = plain(module)
    named, parts = default_encoder(module) if encoder is None else encoder, dict(module.named_modules())
    if isinstance(named, str) and named in parts:
        return named
    chosen = _identities(encoder_parameters(module, encoder).values())
    holding: list[str] = [name for name, part in parts.items() if chosen <= _identities(part.parameters())]
    exact = [name for name in holding if chosen == _identities(parts[name].parameters())]
    return exact[0] if exact else holding[-1]


def features_of(module: nn.Module, encoder: EncoderSpec, batch: Any) -> Tensor:
    """Run the encoder on the inputs of a batch.

    The module's own ``forward`` is run as far as it gets, and what its encoder gives is taken: so whatever precedes
    the encoder takes part. Where that does not reach the encoder, it is called by itself. An encoder that is no
    submodule of its own, such as all but the last layer, ends where the head begins.

    Args:
        module: The whole module, encoder and head; its mode and that of gradients stay as they are.
        encoder: As in :func:`~pge_lightning.encoder.encoder_units`.
        batch: Inputs, with or without labels; a mapping goes in as the keyword arguments that are accepted.

    Returns:
        Features ``[batch, d]``. Of a Hugging Face output its ``pooler_output``, else the mean of its
        ``last_hidden_state``; sequences ``[batch, t, d]`` are averaged over what their ``attention_mask`` leaves,
        maps ``[batch, d, ...]``, and series ``[batch, d, t]`` made from ``[batch, c, t]``, over all but batch and d.

    Raises:
        PGEError: If the encoder cannot be run on the inputs alone, or gives no features of each sample.

    Example:
        >>> import torch
        >>> model = nn.Sequential(nn.Conv1d(1, 8, 3), nn.Flatten(), nn.LazyLinear(2))
        >>> features_of(model, "0", (torch.zeros(5, 1, 16), torch.zeros(5))).shape
        torch.Size([5, 8])
    """
    module, inputs = plain(module), inputs_of(batch)
    site = module.get_submodule(encoder_module(module, encoder))
    chosen = _identities(encoder_parameters(module, encoder).values())
    errors: list[Exception] = []
    for part in dict.fromkeys((module, site)):
        for args, options in _arguments(part, inputs):
            with _watched(site, chosen) as found:
                try:
                    part(*args, **options)
                except Exception as error:  # of any kind: forward is the user's, and may want what is not there
                    errors.append(error)
            if found:
                return _pooled(found[0], inputs)
    raise PGEError(
        f"Expected {type(module).__name__} or its encoder, a {type(site).__name__}, to run on the inputs of a batch "
        f"alone, but got {type(errors[-1]).__name__ if errors else 'no features'}: {errors[-1] if errors else ''}. "
        "Give `features=`, a function of (module, batch) that returns features [batch, d]."
    ) from next(iter(errors), None)


def _identities(parameters: Any) -> set[int]:
    return {id(unit) for unit in parameters}


def _arguments(part: nn.Module, inputs: Any) -> Iterator[tuple[tuple[Any, ...], dict[str, Any]]]:
    """The ways to hand inputs to a module, the likeliest one first."""
    if isinstance(inputs, Mapping):
        accepted = inspect.signature(part.forward).parameters.values()
        names = {each.name for each in accepted if each.kind is not each.VAR_POSITIONAL}
        rest = any(each.kind is each.VAR_KEYWORD for each in accepted)
        if options := {name: value for name, value in inputs.items() if rest or name in names}:
            yield (), options
        if len(inputs) == 1:
            yield tuple(inputs.values()), {}
    yield (inputs,), {}
    if isinstance(inputs, (tuple, list)):
        yield tuple(inputs), {}


@contextmanager
def _watched(site: nn.Module, chosen: set[int]) -> Generator[list[Any]]:
    """What the encoder gives while a module runs: its output, or what the head gets after the encoder's last part."""
    found: list[Any] = []
    begun = False

    def output(part: nn.Module, inputs: Any, result: Any) -> None:
        found.append(result)

    def input_of_head(part: nn.Module, inputs: Any) -> None:
        found.extend(inputs[:begun])

    def begin_anew(part: nn.Module, inputs: Any, result: Any) -> None:
        nonlocal begun
        begun = True
        found.clear()

    handles = []
    if _identities(site.parameters()) <= chosen:
        handles.append(site.register_forward_hook(output))
    else:
        for part in site.modules():
            if own := _identities(part.parameters(recurse=False)):
                handles.append(
                    part.register_forward_hook(begin_anew)
                    if own & chosen
                    else part.register_forward_pre_hook(input_of_head)
                )
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def _pooled(output: Any, inputs: Any) -> Tensor:
    """One vector per sample from whatever an encoder gives."""
    mask = inputs.get("attention_mask") if isinstance(inputs, Mapping) else None
    tensor = _main_tensor(output)
    leaves = [leaf for leaf in tree_leaves(inputs) if isinstance(leaf, Tensor) and leaf.ndim]
    if tensor is None or tensor.ndim == 0 or (leaves and len(tensor) != len(leaves[0])):
        got = f"shape {list(tensor.shape)}" if tensor is not None else f"a {type(output).__name__}"
        raise PGEError(
            f"Expected an encoder that gives features of each of the {len(leaves[0]) if leaves else ''} samples, but "
            f"got {got}. Give `features=`, a function of (module, batch) that returns features [batch, d]."
        )
    if tensor.ndim == 3 and isinstance(mask, Tensor) and mask.shape == tensor.shape[:2]:
        weight = mask.unsqueeze(-1).to(tensor)
        return (tensor * weight).sum(1) / weight.sum(1).clamp(min=1)
    if tensor.ndim == 3 and not (leaves and leaves[0].ndim == 3 and leaves[0].shape[1] != tensor.shape[1]):
        return tensor.mean(1)
    return tensor.flatten(2).mean(2) if tensor.ndim > 2 else tensor.reshape(len(tensor), -1)


def _main_tensor(output: Any) -> Tensor | None:
    """The tensor that an encoder's output is mainly about."""
    for name in ("pooler_output", "last_hidden_state"):
        if isinstance(value := getattr(output, name, None), Tensor):
            return value
    leaves = [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]
    return leaves[0] if leaves else None

"""Loss: what a probe follows downhill, from the module's own training step or from the user."""

import copy
import inspect
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from types import MethodType
from typing import Any, TypeAlias

import lightning.pytorch as pl
from lightning.pytorch.utilities.model_helpers import is_overridden
from lightning.pytorch.utilities.signature_utils import is_param_in_hook_signature
from torch import Tensor, nn

from pge_lightning.errors import PGEError
from pge_lightning.isolation.stand_in import stand_in_trainer
from pge_lightning.isolation.unwrap import plain, wrapped

__all__ = ["LossFn", "Step", "StepMaker", "loss_code", "make_step", "with_trainer"]

LossFn: TypeAlias = Callable[..., Any]
Step: TypeAlias = Callable[[Any, int], Tensor | None]
StepMaker: TypeAlias = Callable[[nn.Module], Step]

CURE = "Give a `loss_fn` of (module, batch) that returns the loss."
LATER_HOOKS = ("on_train_start", "on_train_epoch_start", "on_train_batch_start")
TRAINER_HOOKS = ("setup", "on_fit_start", *LATER_HOOKS)


def make_step(module: nn.Module, loss_fn: LossFn | None = None) -> StepMaker:
    """Choose where the loss comes from.

    A ``training_step`` may return what Lightning accepts: a scalar tensor, a mapping with one under ``"loss"``, or
    ``None`` to skip the batch. The same goes for a `loss_fn`, which may be a function, a partial, a method or a
    module. Modules that it holds are copied for every copy of the user's, and the user's among them is replaced.

    Args:
        module: The user's module, with whatever wraps it.
        loss_fn: Takes a copy of the module and a batch; a method of the module itself takes the batch alone. Without
            it, the module must be a LightningModule under automatic optimization.

    Returns:
        A function of a copy of the module, which returns the copy's step: a function of a batch and its number that
        gives the loss ``[]``, or ``None`` to skip the batch.

    Raises:
        PGEError: If the module has no usable ``training_step`` and no `loss_fn` was given, or the `loss_fn` has
            weights of its own. Steps raise it where the loss is no scalar, or depends on no weight.
    """
    if loss_fn is not None:
        _check_weights(module, loss_fn)
        return partial(_given_step, module, loss_fn)
    module = plain(module)
    if not isinstance(module, pl.LightningModule):
        raise PGEError(
            f"Expected a `loss_fn` for {type(module).__name__}, which is no LightningModule, but got none. "
            "Give a function of (module, batch) that returns the loss."
        )
    if not module.automatic_optimization:
        raise PGEError(
            f"Expected automatic optimization, but {type(module).__name__} optimizes by hand: its `training_step` "
            f"would move weights. {CURE}"
        )
    if is_param_in_hook_signature(_bound_step(module), "dataloader_iter", explicit=True):
        raise PGEError(
            f"Expected `training_step(batch)`, but that of {type(module).__name__} takes `dataloader_iter`. {CURE}"
        )
    return _own_step


def _bound_step(module: Any) -> Callable[..., Any]:
    """The step that Lightning would call, but never a compiled one: that stays bound to the original."""
    own = vars(module).get("training_step")
    if own is not None and module._compiler_ctx is not None:
        own = module._compiler_ctx["original_training_step"]
    if own is not None and not isinstance(own, MethodType):
        raise PGEError(
            f"Expected the `training_step` that was set on the {type(module).__name__} to be a bound method, which "
            f"follows its copies, but got a {type(own).__name__}. Set `types.MethodType(step, module)`."
        )
    return own or module.training_step


def with_trainer(clone: nn.Module) -> None:
    """Give a copy that has no Trainer one to look at.

    Args:
        clone: A copy of the user's module.
    """
    if isinstance(clone, pl.LightningModule) and clone._trainer is None and clone._fabric is None:
        clone.trainer = stand_in_trainer()


def _own_step(clone: Any) -> Step:
    """The copy's own ``training_step``, with the arguments that Lightning would give it."""
    hooks = [name for name in (TRAINER_HOOKS if clone._trainer is None else LATER_HOOKS) if is_overridden(name, clone)]
    with_trainer(clone)
    training_step = _bound_step(clone)
    takes_index = is_param_in_hook_signature(training_step, "batch_idx", min_args=2)

    def step(batch: Any, index: int) -> Tensor | None:
        try:
            output = training_step(batch, index) if takes_index else training_step(batch)
        except Exception as error:  # of any kind: what a hook has yet to make is missed by the user's own code
            _explain(clone, hooks, error)
            raise
        return _loss_of(output, "`training_step`")

    return step


def _explain(clone: nn.Module, missed: list[str], error: Exception) -> None:
    """Say which of the module's own hooks have not run."""
    if missed and not isinstance(error, PGEError):
        raise PGEError(
            f"Expected a `training_step` that runs before {', '.join(missed)}, but that of {type(clone).__name__} "
            f"raised {type(error).__name__}: {error}. Prepare what it needs earlier, or give a `loss_fn`."
        ) from error


def loss_code(module: nn.Module, loss_fn: LossFn | None = None) -> str:
    """What tells a loss from others: its code with the plain constants in it, and what partials and modules fix.

    Args:
        module: The user's module.
        loss_fn: As in :func:`make_step`.

    Returns:
        A text, the same in every process unless the loss is or holds an object without a text of its own.
    """
    loss: Any = loss_fn if loss_fn is not None else getattr(type(module), "training_step", None)
    simple, settings = (int, float, str, bytes), list[Any]()
    while isinstance(loss, partial):
        settings.append((loss.args, sorted(loss.keywords.items())))
        loss = loss.func
    if isinstance(loss, nn.Module):
        settings.append((loss, [(name, value) for name, value in vars(loss).items() if isinstance(value, simple)]))
        loss = type(loss).forward
    function: Any = inspect.unwrap(loss) if hasattr(loss, "__code__") else type(loss).__call__
    code = getattr(function, "__code__", None)
    constants = [value for value in code.co_consts if isinstance(value, simple)] if code else []
    return repr((settings, code and (code.co_code.hex(), code.co_names, constants)))


def _core(loss_fn: Any) -> Any:
    """The function, module or object that a loss comes from, below partials and binding."""
    while isinstance(loss_fn, partial):
        loss_fn = loss_fn.func
    return loss_fn.__self__ if isinstance(loss_fn, MethodType) else loss_fn


def _check_weights(module: nn.Module, loss_fn: LossFn) -> None:
    """Refuse weights that only the loss holds: no restart would draw them, and no warm-up train them."""
    held = [*loss_fn.args, *loss_fn.keywords.values()] if isinstance(loss_fn, partial) else []
    known = {id(weight) for weight in module.parameters()}
    for part in [_core(loss_fn), *held]:
        weights = part.named_parameters() if isinstance(part, nn.Module) else ()
        if own := [name for name, weight in weights if weight.requires_grad and id(weight) not in known]:
            raise PGEError(
                f"Expected a `loss_fn` without weights of its own, but got a {type(part).__name__} with {own[:3]}. "
                "Make it a part of the module, or freeze it with `requires_grad_(False)`."
            )


def _twins(part: nn.Module, twin: nn.Module) -> Iterator[tuple[int, nn.Module]]:
    """The identity of each part of a module, and of whatever wraps it, with the same part of a copy."""
    yield id(part), twin
    while (inner := wrapped(part)) is not None:
        part = inner
        yield id(part), twin
    for name, child in part._modules.items():
        if child is not None and twin._modules.get(name) is not None:
            yield from _twins(child, twin.get_submodule(name))


def _rebound(value: Any, memo: dict[int, Any]) -> Any:
    """A loss whose modules are those in the memo, or copies."""
    if isinstance(value, partial):
        held = {name: _rebound(item, memo) for name, item in value.keywords.items()}
        return partial(_rebound(value.func, memo), *(_rebound(item, memo) for item in value.args), **held)
    if isinstance(value, MethodType):
        return MethodType(value.__func__, _rebound(value.__self__, memo))
    return copy.deepcopy(value, memo) if isinstance(value, nn.Module) else value


def _given_step(module: nn.Module, loss_fn: LossFn, clone: nn.Module) -> Step:
    """The user's loss for one copy of the module."""
    loss = _rebound(loss_fn, dict(_twins(module, clone)))
    takes_module = _core(loss) is not clone
    return lambda batch, _: _loss_of(loss(clone, batch) if takes_module else loss(batch), "`loss_fn`")


def _loss_of(output: Any, source: str) -> Tensor | None:
    """The scalar in what a step returned, by the rules of Lightning's automatic optimization."""
    if output is None:
        return None
    loss = output.get("loss") if isinstance(output, Mapping) else output
    if not isinstance(loss, Tensor):
        found = f"a mapping of {list(output)}" if isinstance(output, Mapping) else f"a {type(output).__name__}"
        raise PGEError(
            f"Expected {source} to return a tensor, a mapping with a tensor under 'loss', or None to skip the batch, "
            f"but got {found}. Return the loss."
        )
    if loss.numel() != 1:
        raise PGEError(f"Expected {source} to return a scalar loss, but got shape {list(loss.shape)}. Take its mean.")
    if not loss.requires_grad:
        raise PGEError(
            f"Expected {source} to return a loss that depends on trainable weights, but got one without a gradient. "
            "Compute it with the module that is given, and do not detach it."
        )
    return loss.reshape(())

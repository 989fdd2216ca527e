"""Where the loss comes from: the same values as a loop written by hand, whatever the step or the loss looks like."""

import copy
import functools
import types
from functools import partial, partialmethod

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.utilities.compile import from_compiled
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from helpers import cross_entropy, points
from pge_lightning.collect import collect_signature
from pge_lightning.collect.loss import loss_code, make_step
from pge_lightning.errors import PGEError
from pge_lightning.isolation.clone import isolated_copy
from pge_lightning.probe import Probe
from trainer_helpers import fit, frozen

BATCHES = [tuple(tensor[at : at + 8] for tensor in points(32).tensors) for at in range(0, 32, 8)]
BATCH = BATCHES[0]


def loader():
    return DataLoader(points(32), batch_size=8)


class Base(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Linear(6, 3)

    def forward(self, inputs):
        return self.encoder(inputs)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class ReturnsTensor(Base):
    def training_step(self, batch, batch_idx):
        return cross_entropy(self, batch)


class ReturnsOneElement(Base):
    def training_step(self, batch, batch_idx):
        return cross_entropy(self, batch)[None]


class ReturnsMapping(Base):
    def training_step(self, batch, batch_idx):
        return {"loss": cross_entropy(self, batch), "other": 1}


class NeedsNoNumber(Base):
    def training_step(self, batch):
        return cross_entropy(self, batch)


class OtherNames(Base):
    def training_step(self, samples, number):
        assert isinstance(number, int)
        return cross_entropy(self, samples)


class AnyArguments(Base):
    def training_step(self, *args):
        batch, number = args
        assert isinstance(number, int)
        return cross_entropy(self, batch)


class KeywordOnlyWithDefault(Base):
    def training_step(self, batch, *, scale=1.0):
        return scale * cross_entropy(self, batch)


class LoaderNumber(Base):
    def training_step(self, batch, batch_idx, dataloader_idx=0):
        assert dataloader_idx == 0
        return cross_entropy(self, batch)


class Inherits(ReturnsMapping):
    pass


def counted(step):
    @functools.wraps(step)
    def wrapper(self, *args):
        assert len(args) == 1
        return step(self, *args)

    return wrapper


class Decorated(Base):
    @counted
    def training_step(self, batch):
        return cross_entropy(self, batch)


class Partial(Base):
    def _step(self, batch, batch_idx, stage):
        assert stage == "train"
        return cross_entropy(self, batch)

    training_step = partialmethod(_step, stage="train")


class OnTheInstance(Base):
    def __init__(self):
        super().__init__()
        self.training_step = types.MethodType(ReturnsTensor.training_step, self)


STEPS = [
    ReturnsTensor,
    ReturnsOneElement,
    ReturnsMapping,
    NeedsNoNumber,
    OtherNames,
    AnyArguments,
    KeywordOnlyWithDefault,
    LoaderNumber,
    Inherits,
    Decorated,
    Partial,
    OnTheInstance,
]


@pytest.mark.parametrize("kind", STEPS)
def test_training_steps_of_all_shapes_give_the_loss_that_lightning_takes(kind):
    module = kind()
    clone = copy.deepcopy(module)
    nn.init.zeros_(module.encoder.weight)
    step = make_step(module)(clone)
    for index, batch in enumerate(BATCHES):
        loss = step(batch, index)
        assert loss.shape == ()
        assert torch.equal(loss, cross_entropy(clone, batch))
        (gradient,) = torch.autograd.grad(loss, [clone.encoder.weight])
        (expected,) = torch.autograd.grad(cross_entropy(clone, batch), [clone.encoder.weight])
        assert torch.equal(gradient, expected)


@pytest.mark.parametrize("kind", STEPS)
def test_lightning_trains_with_the_same_steps(kind):
    module = kind()
    before = frozen(dict(module.named_parameters()))
    assert fit(module, loader()).global_step == len(BATCHES)
    assert frozen(dict(module.named_parameters())) != before


def test_the_number_of_the_batch_arrives_and_none_skips():
    class Counts(Base):
        def training_step(self, batch, batch_idx):
            return cross_entropy(self, batch) * batch_idx if batch_idx else None

    module = Counts()
    step = make_step(module)(module)
    assert step(BATCH, 0) is None
    assert torch.equal(step(BATCH, 3), 3 * cross_entropy(module, BATCH))


def test_a_container_of_several_loaders_arrives_whole():
    class Sums(Base):
        def training_step(self, batch, batch_idx):
            return sum(cross_entropy(self, part) for part in batch.values())

    module, batch = Sums(), {"one": BATCHES[0], "other": BATCHES[1]}
    expected = cross_entropy(module, BATCHES[0]) + cross_entropy(module, BATCHES[1])
    assert torch.equal(make_step(module)(module)(batch, 0), expected)


def test_a_copy_of_a_compiled_module_runs_its_own_step():
    module = ReturnsTensor()
    compiled = from_compiled(torch.compile(module, backend="eager"))
    assert compiled is module
    clone = isolated_copy(module)
    nn.init.zeros_(module.encoder.weight)
    assert torch.equal(make_step(module)(clone)(BATCH, 0), cross_entropy(clone, BATCH))


class Returns(Base):
    """Returns whatever it is told to make of its loss."""

    def __init__(self, made):
        super().__init__()
        self.made = made

    def training_step(self, batch, batch_idx):
        return self.made(cross_entropy(self, batch))


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (lambda loss: {}, r"a mapping with a tensor under 'loss', .* got a mapping of \[\]. Return the loss"),
        (lambda loss: {"loss": None}, r"got a mapping of \['loss'\]"),
        (lambda loss: {"objective": loss}, r"got a mapping of \['objective'\]"),
        (float, "got a float"),
        (lambda loss: (loss, 1), "got a tuple"),
        (lambda loss: loss.expand(4), r"a scalar loss, but got shape \[4\]. Take its mean"),
        (lambda loss: loss.detach(), "depends on trainable weights, but got one without a gradient"),
    ],
)
def test_what_lightning_refuses_is_refused_with_the_cure(made, message):
    module = Returns(made)
    with pytest.raises(PGEError, match=message):
        make_step(module)(module)(BATCH, 0)
    with pytest.raises(PGEError, match=message.replace("training_step", "loss_fn")):
        make_step(module, lambda clone, batch: made(cross_entropy(clone, batch)))(module)(BATCH, 0)
    with pytest.raises((pl.utilities.exceptions.MisconfigurationException, RuntimeError)):
        fit(module, loader())


class Weighted(nn.Module):
    """A loss with a buffer that counts, a fixed weight per class, and the module's head, if it is told."""

    def __init__(self, head=None):
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("weight", torch.tensor([1.0, 2.0, 3.0]))
        self.head = head

    def forward(self, module, batch):
        self.calls += 1
        return F.cross_entropy(module(batch[0]), batch[1], weight=self.weight) * self.calls

    def by_name(self, module, batch):
        return self(module, batch)


class OwnLoss(Base):
    def objective(self, batch, factor=1.0):
        return factor * cross_entropy(self, batch)


class Scaled:
    """A loss that is an object of no particular class."""

    def __call__(self, module, batch):
        return 2 * cross_entropy(module, batch)

    def method(self, module, batch):
        return 3 * cross_entropy(module, batch)


def weighted(module, batch, number):
    return F.cross_entropy(module(batch[0]), batch[1], weight=torch.tensor([1.0, 2.0, 3.0])) * number


def scaled(module, batch, factor):
    return factor * cross_entropy(module, batch)


LOSSES = {
    "function": (lambda module: cross_entropy, lambda clone, batch, number: cross_entropy(clone, batch)),
    "mapping": (
        lambda module: lambda clone, batch: {"loss": cross_entropy(clone, batch)},
        lambda clone, batch, number: cross_entropy(clone, batch),
    ),
    "partial": (lambda module: partial(scaled, factor=4.0), lambda clone, batch, number: scaled(clone, batch, 4.0)),
    "object": (lambda module: Scaled(), lambda clone, batch, number: scaled(clone, batch, 2)),
    "method of an object": (lambda module: Scaled().method, lambda clone, batch, number: scaled(clone, batch, 3)),
    "method of the module": (lambda module: module.objective, lambda clone, batch, number: cross_entropy(clone, batch)),
    "partial of a method of the module": (
        lambda module: partial(module.objective, factor=5.0),
        lambda clone, batch, number: scaled(clone, batch, 5.0),
    ),
    "loss module": (lambda module: Weighted(), weighted),
    "method of a loss module": (lambda module: Weighted().by_name, weighted),
    "partial over a loss module": (
        lambda module: partial(lambda clone, batch, criterion: criterion(clone, batch), criterion=Weighted()),
        weighted,
    ),
    "partial over the module": (
        lambda module: partial(lambda clone, batch, net: cross_entropy(net, batch), net=module),
        lambda clone, batch, number: cross_entropy(clone, batch),
    ),
    "partial over a part of the module": (
        lambda module: partial(
            lambda encoder, clone, batch: F.cross_entropy(encoder(batch[0]), batch[1]), module.encoder
        ),
        lambda clone, batch, number: cross_entropy(clone, batch),
    ),
}


@pytest.mark.parametrize("name", LOSSES)
def test_losses_of_all_shapes_give_the_values_of_a_loop_by_hand_on_the_copy(name):
    make, by_hand = LOSSES[name]
    module = OwnLoss()
    loss_fn = make(module)
    bind = make_step(module, loss_fn)
    for seed in range(2):  # each copy's loss starts with the state that the user's has
        torch.manual_seed(seed)
        clone = OwnLoss()
        step = bind(clone)
        for index, batch in enumerate(BATCHES):
            loss = step(batch, index)
            torch.testing.assert_close(loss, by_hand(clone, batch, index + 1))
            assert torch.autograd.grad(loss, [clone.encoder.weight])[0].any()


def test_losses_are_told_apart_by_code_constants_and_what_they_fix():
    module, losses = OwnLoss(), {
        "function": cross_entropy,
        "constant": lambda clone, batch: 2.5 * cross_entropy(clone, batch),
        "other constant": lambda clone, batch: 3.5 * cross_entropy(clone, batch),
        "partial": partial(scaled, factor=2.0),
        "other partial": partial(scaled, factor=3.0),
        "module": nn.CrossEntropyLoss(),
        "other module": nn.CrossEntropyLoss(label_smoothing=0.1, reduction="sum"),
        "object": Scaled(),
        "method": Scaled().method,
        "step": None,
    }  # fmt: skip
    codes = [loss_code(module, loss) for loss in losses.values()]
    assert codes == [loss_code(copy.deepcopy(module), copy.deepcopy(loss)) for loss in losses.values()]
    assert len(set(codes)) == len(losses)


def test_a_loss_module_of_the_user_is_not_touched():
    loss_fn = Weighted()
    probe = Probe(restarts=2, steps=3, batch_size=8, budgets=(16,))
    collect_signature(ReturnsTensor(), BATCHES, loss_fn=loss_fn, probe=probe, encoder="encoder")
    assert (loss_fn.calls.item(), loss_fn.training) == (0, True)


@pytest.mark.parametrize("wrap", [lambda module: module, lambda module: torch.compile(module, backend="eager")])
def test_a_method_of_the_module_follows_the_copies_of_a_compiled_one_too(wrap):
    probe, module = Probe(restarts=2, steps=3, batch_size=8, budgets=(16,)), OwnLoss()
    expected = collect_signature(OwnLoss(), loader(), loss_fn=cross_entropy, probe=probe, encoder="encoder")
    found = collect_signature(wrap(module), loader(), loss_fn=module.objective, probe=probe, encoder="encoder")
    assert found.units.keys() == expected.units.keys()
    for name, stack in expected.units.items():
        assert torch.equal(found.units[name], stack)


def test_weights_that_only_the_loss_holds_are_refused():
    criterion = nn.Linear(3, 3)
    loss_fn = partial(lambda module, batch, head: head(module(batch[0])).mean(), head=criterion)
    with pytest.raises(PGEError, match=r"without weights of its own, but got a Linear with \['weight', 'bias'\]"):
        make_step(OwnLoss(), loss_fn)
    criterion.requires_grad_(False)
    module = OwnLoss()
    assert make_step(module, loss_fn)(module)(BATCH, 0).requires_grad


def test_loss_fn_overrules_the_training_step():
    module = ReturnsTensor()
    step = make_step(module, lambda clone, batch: clone(batch[0]).square().mean())(module)
    assert torch.equal(step(BATCH, 0), module(BATCH[0]).square().mean())


class Manual(ReturnsTensor):
    def __init__(self):
        super().__init__()
        self.automatic_optimization = False


class FromIterator(Base):
    def training_step(self, dataloader_iter):
        return cross_entropy(self, next(dataloader_iter))


class FunctionOnTheInstance(Base):
    def __init__(self):
        super().__init__()
        self.training_step = lambda batch, batch_idx: cross_entropy(self, batch)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (lambda: nn.Linear(6, 3), r"Expected a `loss_fn` for Linear, which is no LightningModule.*Give a function"),
        (Manual, "Manual optimizes by hand.*Give a `loss_fn`"),
        (FromIterator, "FromIterator takes `dataloader_iter`.*Give a `loss_fn`"),
        (FunctionOnTheInstance, r"to be a bound method, .* but got a function. Set `types.MethodType\(step, module\)`"),
    ],
)
def test_without_a_usable_step_there_is_an_error_with_the_cure(kind, message):
    module = kind()
    with pytest.raises(PGEError, match=message):
        make_step(module)
    assert make_step(module, cross_entropy)(nn.Linear(6, 3))(BATCH, 0).requires_grad


class Late(Base):
    """Needs what a hook makes."""

    def on_train_epoch_start(self):
        self.scale = 2.0

    def training_step(self, batch, batch_idx):
        return self.scale * cross_entropy(self, batch)


class LateSetup(Late):
    def setup(self, stage):
        self.scale = 2.0


def test_a_step_that_misses_what_a_later_hook_makes_says_so():
    with pytest.raises(PGEError, match="runs before on_train_epoch_start, but that of Late raised AttributeError"):
        make_step(Late())(Late())(BATCH, 0)
    with pytest.raises(PGEError, match=r"runs before setup, on_train_epoch_start, .* or give a `loss_fn`"):
        make_step(LateSetup())(LateSetup())(BATCH, 0)
    with pytest.raises(TypeError, match="NoneType"):
        make_step(ReturnsTensor())(ReturnsTensor())(None, 0)

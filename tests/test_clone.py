"""Copies: whatever hangs on a module, a collection works on something of its own."""

import threading

import lightning.pytorch as pl
import pytest
import torch
from lightning.fabric import Fabric
from torch import nn
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy

from helpers import Points, points
from pge_lightning.errors import PGEError
from pge_lightning.isolation.clone import isolated_copy
from test_unwrap import WRAPS

INPUTS = points(20).tensors[0]


def test_a_copy_is_float32_mute_and_training():
    module = Points().double().eval()
    clone = isolated_copy(module)
    assert {unit.dtype for unit in clone.parameters()} == {torch.float32}
    assert all(part.training for part in clone.modules())
    clone.log("any", 1.0)
    clone.log_dict({"any": 1.0})
    with torch.no_grad():
        clone.head.weight.fill_(3.0)
    assert not any(part.training for part in module.modules())
    assert module.head.weight.dtype == torch.float64
    assert module.head.weight.abs().max() < 1
    assert "log" not in vars(module)


def test_a_single_part_stays_in_evaluation():
    module = Points()
    module.encoder[1].eval()
    assert [part.training for part in isolated_copy(module).encoder] == [True, False, True, True, True]


def test_nested_lightning_modules_are_mute():
    outer = nn.ModuleDict({"inner": Points()})
    clone = isolated_copy(outer)
    assert clone.inner.log("any", 1.0) is None
    assert "log" in vars(clone.inner)
    assert "log" not in vars(outer.inner)


def test_complex_numbers_keep_their_imaginary_part():
    module = nn.ModuleDict({"part": nn.Linear(2, 2)}).double()
    module.register_parameter("wave", nn.Parameter(torch.randn(3, dtype=torch.complex128)))
    module.register_buffer("phase", torch.randn(3, dtype=torch.complex128))
    clone = isolated_copy(module)
    assert (clone.wave.dtype, clone.phase.dtype) == (torch.complex64, torch.complex64)
    torch.testing.assert_close(clone.wave.detach(), module.wave.detach().to(torch.complex64))
    assert module.wave.dtype == torch.complex128


def test_integers_and_lists_of_parameters_are_copied():
    module = nn.Module()
    module.table = nn.Parameter(torch.arange(3), requires_grad=False)
    module.several = nn.ParameterList([torch.randn(2), torch.randn(3)])
    module.named = nn.ParameterDict({"one": torch.randn(2)})
    clone = isolated_copy(module)
    assert clone.table.tolist() == [0, 1, 2]
    assert list(dict(clone.named_parameters())) == ["table", "several.0", "several.1", "named.one"]
    assert all(
        unit.is_leaf and unit.data_ptr() != own.data_ptr()
        for unit, own in zip(clone.parameters(), module.parameters(), strict=True)
    )


def test_a_module_made_in_inference_mode_can_be_trained_as_a_copy():
    with torch.inference_mode():
        module = Points()
        clone = isolated_copy(module)
    assert module.head.weight.is_inference()
    clone(INPUTS).sum().backward()
    assert clone.head.weight.grad is not None
    assert not any(tensor.is_inference() for tensor in [*clone.parameters(), *clone.buffers()])


# What hangs on a module


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
@pytest.mark.parametrize("norm", [nn.utils.weight_norm, nn.utils.spectral_norm])
def test_results_that_hang_on_a_module_are_copied_as_values(norm):
    module = nn.Sequential(norm(nn.Linear(6, 4)), nn.Linear(4, 2))
    module(INPUTS).sum().backward()
    module.trail = {"states": [module(INPUTS)]}
    assert not module[0].weight.is_leaf
    clone = isolated_copy(module)
    assert not clone.trail["states"][0].requires_grad
    torch.testing.assert_close(clone.eval()(INPUTS), module.eval()(INPUTS))
    clone(INPUTS).sum().backward()
    assert all(unit.grad is not None for unit in clone.parameters())


@pytest.mark.parametrize("path", ["lock", "encoder.0.lock", "encoder.4.locks"])
def test_what_cannot_be_copied_is_named(path):
    module = Points()
    owner, _, name = path.rpartition(".")
    setattr(module.get_submodule(owner), name, [threading.Lock()] if name == "locks" else threading.Lock())
    with pytest.raises(
        PGEError, match=rf"can copy, but got Points with `{path}`: cannot pickle.*Make it where it is used"
    ):
        isolated_copy(module)


def test_a_class_that_refuses_copies_is_an_error():
    class Refuses(nn.Linear):
        def __deepcopy__(self, memo):
            raise ValueError("only one of me")

    with pytest.raises(PGEError, match=r"can copy, but got Refuses: only one of me\."):
        isolated_copy(Refuses(2, 2))


def test_a_part_that_gives_itself_as_its_copy_is_refused():
    class Single(nn.Linear):
        def __deepcopy__(self, memo):
            return self

    module = Points()
    module.encoder[4] = Single(10, 10)
    with pytest.raises(PGEError, match=r"tensors of its own, but 'encoder\.4\.weight' is that of the original"):
        isolated_copy(module)


def test_weights_that_are_not_there_are_refused():
    with torch.device("meta"):
        module = Points()
    with pytest.raises(PGEError, match=r"'encoder\.0\.weight' is on the meta device. Call `configure_model"):
        isolated_copy(module)


def test_parameters_that_overlap_are_refused_and_others_in_one_storage_are_not():
    whole = torch.randn(4, 6)
    module = nn.Module()
    module.rows = nn.Parameter(whole[:2])
    module.others = nn.Parameter(whole[2:])
    module.left, module.right = nn.Parameter(torch.randn(4, 6)[:, :2]), nn.Parameter(whole[2:].clone()[:, 2:])
    module.tied = module.rows
    clone = isolated_copy(module)
    assert clone.tied is clone.rows
    module.overlap = nn.Parameter(whole[1:3])
    with pytest.raises(PGEError, match=r"'rows' and 'overlap' overlap.*Tie them"):
        isolated_copy(module)


# Wrappers and other processes


@pytest.mark.parametrize("wrap", WRAPS)
def test_a_copy_of_a_wrapped_module_is_plain_and_runs_its_own_weights(wrap):
    torch.manual_seed(0)
    module = Points().eval()
    expected = module(INPUTS)
    wrapped = wrap(module)
    clone = isolated_copy(wrapped)
    assert list(clone.state_dict()) == list(Points().state_dict())
    clone.eval()
    torch.testing.assert_close(clone(INPUTS), expected)
    with torch.no_grad():
        for unit in clone.parameters():
            unit.zero_()
    assert not clone(INPUTS).any()
    torch.testing.assert_close(wrapped(INPUTS), expected)


def test_synchronised_batch_norm_works_alone():
    module = nn.SyncBatchNorm.convert_sync_batchnorm(Points())
    assert isinstance(module.encoder[1], nn.SyncBatchNorm)
    clone, plain = isolated_copy(module), isolated_copy(Points())
    clone.load_state_dict(plain.state_dict())
    torch.manual_seed(0)
    outputs = clone(INPUTS)
    torch.manual_seed(0)
    torch.testing.assert_close(outputs, plain(INPUTS))
    torch.testing.assert_close(clone.encoder[1].running_mean, plain.encoder[1].running_mean)
    assert isinstance(module.encoder[1], nn.SyncBatchNorm)
    assert clone.encoder[1](torch.randn(2, 10, 3, 3)).shape == (2, 10, 3, 3)


def test_metrics_never_wait_for_other_processes():
    def never(*_, **__):
        raise AssertionError

    module = Points()
    options = {"dist_sync_on_step": True, "distributed_available_fn": lambda: True, "dist_sync_fn": never}
    module.metrics = MetricCollection([MulticlassAccuracy(3, **options)])
    with pytest.raises(AssertionError):
        module.metrics(torch.randn(4, 3), torch.zeros(4, dtype=torch.int64))
    clone = isolated_copy(module)
    clone.metrics(torch.randn(4, 3), torch.zeros(4, dtype=torch.int64))
    assert set(clone.metrics.compute()) == {"MulticlassAccuracy"}


def test_gathering_gives_what_a_single_device_gives():
    module = Points()
    trainer = pl.Trainer(accelerator="cpu", devices=1, logger=False, enable_checkpointing=False, barebones=True)
    module.trainer = trainer
    value = torch.randn(3, requires_grad=True)
    data = {"value": value, "number": 2}
    expected = module.all_gather(data, sync_grads=True)
    found = isolated_copy(module).all_gather(data, sync_grads=True)
    assert found["value"] is value
    assert torch.equal(found["number"], expected["number"])


def test_what_fabric_has_set_up_is_copied_without_fabric():
    fabric = Fabric(accelerator="cpu")
    module = Points()
    fabric.setup_module(module)
    fabric.lock = threading.Lock()
    assert isolated_copy(module)._fabric is fabric

"""Sharded modules, in two real processes: loaded in place, piece by piece; refused where they would be copied."""

import sys
from types import SimpleNamespace

import pytest
import torch
from lightning.fabric.strategies import SingleDeviceStrategy as SingleDeviceStrategyOfFabric
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.fabric.wrappers import _FabricModule
from lightning.pytorch.strategies import (
    DDPStrategy,
    DeepSpeedStrategy,
    FSDPStrategy,
    ModelParallelStrategy,
    ParallelStrategy,
    SingleDeviceStrategy,
)
from lightning.pytorch.strategies.xla import XLAStrategy
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

from helpers import Points
from pge_lightning.callbacks.phase import check_strategy
from pge_lightning.collect import collect_signature
from pge_lightning.encoder import encoder_state
from pge_lightning.errors import PGEError
from pge_lightning.load import load_encoder
from pge_lightning.sharding import check_whole, load_shards, sharding
from two_processes import in_two_processes

CPU = torch.device("cpu")


def built(seed):
    torch.manual_seed(seed)
    module = Points()
    module.encoder[1].running_mean.normal_()
    return module


def by_fully_shard(module):
    mesh = init_device_mesh("cpu", (2,))
    fully_shard(module.encoder, mesh=mesh)
    return fully_shard(module, mesh=mesh)


def by_tensor_parallel(module):
    plan = {"encoder.0": ColwiseParallel(), "encoder.4": RowwiseParallel()}
    return parallelize_module(module, init_device_mesh("cpu", (2,)), plan)


def nested_fsdp(module):
    module.encoder = FullyShardedDataParallel(module.encoder, device_id=CPU)
    return module


WAYS = {
    "fully_shard": by_fully_shard,
    "fully_shard in bfloat16": lambda module: by_fully_shard(module.to(torch.bfloat16)),
    "tensor parallel": by_tensor_parallel,
    "FSDP": lambda module: FullyShardedDataParallel(module, device_id=CPU),
    "FSDP with original parameters": lambda module: FullyShardedDataParallel(
        module, device_id=CPU, use_orig_params=True
    ),
    "FSDP of the encoder": nested_fsdp,
}
KINDS = {"fully_shard": "DTensor", "tensor parallel": "DTensor", "FSDP": "FSDP"}


def whole(module):
    """All values, brought together on every process."""
    return {k: v.full_tensor() if isinstance(v, DTensor) else v.clone() for k, v in module.state_dict().items()}


def message(work):
    try:
        work()
    except PGEError as error:
        return str(error)
    return ""


def loaded(shard):
    module = shard(built(seed=1))
    before = {name: id(unit) for name, unit in module.named_parameters()}
    source = built(seed=7)
    source.head = nn.Linear(10, 5)
    report = load_encoder(module, source.state_dict())
    return {
        "kind": sharding(module),
        "whole": whole(module),
        "in place": before == {name: id(unit) for name, unit in module.named_parameters()},
        "pieces": sum(
            unit.numel() if not isinstance(unit, DTensor) else unit.to_local().numel() for unit in module.parameters()
        ),
        "report": report,
        "foreign": message(lambda: load_encoder(module, nn.Linear(2, 2).state_dict(prefix="0."))),
        "refusal": message(lambda: collect_signature(module, [], probe="fast")),
        "wrapped": fabric_wrapped(shard),
        "inside": message(lambda: load_encoder(module.module, source.state_dict()))
        if hasattr(module, "module")
        else "",
    }


def fabric_wrapped(shard):
    """The values of a sharded module that is loaded as Fabric wraps it."""
    plain = built(seed=1)
    sharded = shard(plain)
    wrapped = _FabricModule(sharded, SingleDeviceStrategyOfFabric(CPU), original_module=plain)
    load_encoder(wrapped, built(seed=7).state_dict())
    return whole(sharded)


def loaded_in_all_ways(rank):
    return {name: loaded(shard) for name, shard in WAYS.items()}


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return in_two_processes(loaded_in_all_ways, tmp_path_factory.mktemp("sharded"))


@pytest.mark.parametrize("way", WAYS)
def test_an_encoder_is_loaded_into_shards_in_place(way, results):
    target = built(seed=1).to(torch.bfloat16) if "bfloat16" in way else built(seed=1)
    load_encoder(target, encoder_state(built(seed=7), "encoder"))
    expected = target.state_dict()
    size = sum(unit.numel() for unit in target.parameters())
    for found in (result[way] for result in results):
        assert found["kind"] == KINDS[way.split(" of ")[0].split(" with ")[0].split(" in ")[0]]
        assert found["whole"].keys() == expected.keys()
        assert all(torch.equal(found["whole"][name], value) for name, value in expected.items())
        assert found["in place"]
    assert sum(result[way]["pieces"] for result in results) < 2 * size


@pytest.mark.parametrize("way", WAYS)
def test_shards_below_fabrics_wrapper_are_loaded_as_well(way, results):
    expected = built(seed=7).to(torch.bfloat16 if "bfloat16" in way else torch.float32).state_dict()
    for found in (result[way]["wrapped"] for result in results):
        assert all(torch.equal(found[name], value) for name, value in expected.items())


@pytest.mark.parametrize("way", WAYS)
def test_the_report_on_shards_speaks_of_whole_tensors(way, results):
    target, source = built(seed=1), built(seed=7)
    source.head = nn.Linear(10, 5)
    expected = load_encoder(target, source.state_dict())
    for report in (result[way]["report"] for result in results):
        assert set(report.loaded) == set(expected.loaded)
        assert (report.left, report.skipped) == (expected.left, expected.skipped)
        assert report.skipped["head.weight"] == "shape [5, 10], not [3, 10]"
    assert all("no name and shape" in result[way]["foreign"] for result in results)


@pytest.mark.parametrize("way", WAYS)
def test_a_sharded_module_is_refused_before_any_work(way, results):
    for found in (result[way] for result in results):
        assert f"are sharded ({found['kind']})" in found["refusal"]
        assert "`load_encoder`, on every process" in found["refusal"]


def test_a_module_inside_of_fsdp_is_refused_with_the_way_to_the_outer_one(results):
    for found in (result["FSDP with original parameters"] for result in results):
        assert "lies inside of it" in found["inside"]
        assert "`trainer.strategy.model`" in found["inside"]


def test_whole_modules_pass_and_deepspeeds_are_refused():
    module = built(seed=0)
    check_whole(module)
    assert sharding(module) == ""
    module.head.weight.ds_id = 0  # what DeepSpeed's third stage leaves at each parameter
    with pytest.raises(PGEError, match=r"are sharded \(DeepSpeed\)"):
        check_whole(module)
    with pytest.raises(PGEError, match="Load the encoder before the module is set up"):
        load_encoder(module, module.state_dict())


class Foreign(ParallelStrategy):
    """A strategy of somebody else's; nothing is known of how it keeps parameters."""

    barrier = broadcast = model_to_device = reduce = root_device = None


@pytest.mark.parametrize("kind", [FSDPStrategy, ModelParallelStrategy, DeepSpeedStrategy, XLAStrategy, Foreign])
def test_callbacks_refuse_strategies_that_shard_or_are_unknown_with_the_way_out(kind):
    # These need hardware or packages to be set up, so that a bare object of their class stands for them.
    with pytest.raises(MisconfigurationException, match=f"Owner is not supported with {kind.__name__}") as refusal:
        check_strategy(SimpleNamespace(strategy=kind.__new__(kind)), "Owner")
    for way in ("before `trainer.fit`", "`collect_signature`", "`SourceSelector`", "`load_encoder`"):
        assert way in str(refusal.value)


def test_callbacks_take_strategies_made_from_those_that_keep_whole_parameters():
    for base in (SingleDeviceStrategy, DDPStrategy):
        kind = type("Derived", (base,), {})
        check_strategy(SimpleNamespace(strategy=kind.__new__(kind)), "Owner")


def test_a_version_of_lightning_without_the_tool_is_named(monkeypatch):
    monkeypatch.delattr(sys.modules["lightning.fabric.strategies.model_parallel"], "_load_raw_module_state")
    with pytest.raises(PGEError, match="Expected a version of Lightning"):
        load_shards(built(seed=0), {})

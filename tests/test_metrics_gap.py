"""The metric: equal to the pure function, whatever the batches and the processes."""

import copy
import pickle

import pytest
import torch
from torchmetrics import MetricCollection

from pge_lightning.functional import principal_gradient_gap
from pge_lightning.functional.gap import KINDS
from pge_lightning.metrics import PrincipalGradientGap
from two_processes import in_two_processes

UNITS = {"weight": (3, 5), "bias": (3,), "scale": ()}
RESTARTS, BATCHES = 4, 6


def batch(seed):
    generator = torch.Generator().manual_seed(seed)
    return tuple(
        {name: torch.randn(RESTARTS, *shape, generator=generator) + 1 for name, shape in UNITS.items()}
        for _ in ("source", "target")
    )


def rows(side, numbers):
    return {name: unit[list(numbers)] for name, unit in side.items()}


def expected(kind, batches=range(BATCHES)):
    seen = [batch(seed) for seed in batches]
    means = [
        {name: torch.stack([pair[side][name].double() for pair in seen]).mean(0) for name in UNITS} for side in (0, 1)
    ]
    return float(principal_gradient_gap(means[0], means[1], kind))


def filled(kind="kernelwise"):
    metric = PrincipalGradientGap(UNITS, RESTARTS, kind)
    for seed in range(BATCHES):
        metric.update(*batch(seed))
    return metric


@pytest.mark.parametrize("kind", KINDS)
def test_equals_the_function_on_the_means(kind):
    assert float(filled(kind).compute()) == pytest.approx(expected(kind), rel=1e-12)


def test_one_update_is_exactly_the_function():
    metric = PrincipalGradientGap(UNITS, RESTARTS)
    metric.update(*batch(0))
    assert torch.equal(metric.compute(), principal_gradient_gap(*batch(0)))


def test_restarts_may_come_one_by_one_in_any_order_and_twice():
    metric = PrincipalGradientGap(UNITS, RESTARTS)
    for seed in range(BATCHES):
        for number in (2, 0, 3, 1):
            metric.update(*(rows(side, [number]) for side in batch(seed)), restarts=[number])
    assert float(metric.compute()) == pytest.approx(expected("kernelwise"), rel=1e-12)
    twice = PrincipalGradientGap(UNITS, RESTARTS)
    sides = batch(0)
    twice.update(*(rows(side, [0, 1, 2, 3, 3]) for side in sides), restarts=[0, 1, 2, 3, 3])
    assert float(twice.compute()) == pytest.approx(expected("kernelwise", [0]), rel=1e-12)
    assert twice.count.tolist() == [1, 1, 1, 2]


def test_forward_gives_the_batch_and_keeps_the_sum():
    metric = PrincipalGradientGap(UNITS, RESTARTS)
    values = [float(metric(*batch(seed))) for seed in range(BATCHES)]
    assert values == pytest.approx([expected("kernelwise", [seed]) for seed in range(BATCHES)], rel=1e-12)
    assert float(metric.compute()) == pytest.approx(expected("kernelwise"), rel=1e-12)


def test_reset_forgets():
    metric = filled()
    metric.reset()
    assert metric.count.tolist() == [0] * RESTARTS
    metric.update(*batch(9))
    assert float(metric.compute()) == pytest.approx(expected("kernelwise", [9]), rel=1e-12)


@pytest.mark.parametrize(
    "duplicate", [copy.deepcopy, lambda metric: metric.clone(), lambda metric: pickle.loads(pickle.dumps(metric))]
)
def test_copies_go_on_by_themselves(duplicate):
    metric = filled("unit")
    other = duplicate(metric)
    assert torch.equal(other.compute(), metric.compute())
    other.update(*batch(BATCHES))
    assert float(other.compute()) == pytest.approx(expected("unit", range(BATCHES + 1)), rel=1e-12)
    assert float(metric.compute()) == pytest.approx(expected("unit"), rel=1e-12)


def test_state_dict_carries_the_sums():
    metric, other = filled(), PrincipalGradientGap(UNITS, RESTARTS)
    metric.persistent(True)
    other.persistent(True)
    other.load_state_dict(metric.state_dict())
    other.update(*batch(BATCHES))
    assert float(other.compute()) == pytest.approx(expected("kernelwise", range(BATCHES + 1)), rel=1e-12)


def test_a_collection_of_kinds_shares_the_input():
    kinds = {kind: PrincipalGradientGap(UNITS, RESTARTS, kind) for kind in KINDS}
    collection = MetricCollection(kinds)
    for seed in range(BATCHES):
        collection.update(*batch(seed))
    for kind, value in collection.compute().items():
        assert float(value) == pytest.approx(expected(kind), rel=1e-12)


def test_half_precision_of_the_module_leaves_the_sums_alone():
    metric = torch.nn.ModuleDict({"gap": PrincipalGradientGap(UNITS, RESTARTS)}).half()["gap"]
    metric.update(*batch(0))
    assert metric.source_sum.dtype == torch.float64
    assert torch.equal(metric.compute(), principal_gradient_gap(*batch(0)))


def test_flags():
    metric = PrincipalGradientGap(UNITS, RESTARTS)
    assert (metric.is_differentiable, metric.higher_is_better, metric.full_state_update) == (False, False, False)


def test_plot_shows_the_value():
    pyplot = pytest.importorskip("matplotlib.pyplot")
    pyplot.switch_backend("Agg")
    metric = filled()
    figure, axes = metric.plot()
    assert axes.lines[0].get_ydata() == pytest.approx([float(metric.compute())])
    pyplot.close(figure)


def test_a_restart_never_observed_is_an_error():
    metric = PrincipalGradientGap(UNITS, RESTARTS)
    metric.update(*(rows(side, [0, 2]) for side in batch(0)), restarts=[0, 2])
    with pytest.raises(ValueError, match=r"all 4 restarts, but got none of \[1, 3\]"):
        metric.compute()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"units": {}}, "at least one weight unit"),
        ({"restarts": 0}, "`restarts` to be at least 1, but got 0"),
        ({"kind": "cosine"}, r"'layerwise', 'unit', 'published'.*'cosine'"),
        ({"unheard": 1}, "unheard"),
    ],
)
def test_constructor_refuses(change, message):
    with pytest.raises(ValueError, match=message):
        PrincipalGradientGap(**{"units": UNITS, "restarts": RESTARTS, **change})


@pytest.mark.parametrize(
    ("change", "restarts", "message"),
    [
        ({"weight": None}, None, r"units.*\['weight'\]"),
        ({"more": torch.ones(4, 1)}, None, r"units.*\['more'\]"),
        ({"bias": torch.ones(4, 2)}, None, r"'bias' of shape \[4, 3\], but got \[4, 2\]"),
        ({}, [0, 1], r"of shape \[2, 3, 5\], but got \[4, 3, 5\]"),
        ({}, [0, 1, 2, 4], r"from 0 to 3, but got \[0, 1, 2, 4\]"),
        ({}, [-1, 1, 2, 3], "from 0 to 3"),
    ],
)
@pytest.mark.parametrize("side", [0, 1])
def test_update_refuses_and_keeps_its_state(change, restarts, message, side):
    metric, sides = filled(), list(batch(0))
    sides[side] = {name: unit for name, unit in {**sides[side], **change}.items() if unit is not None}
    with pytest.raises(ValueError, match=message):
        metric.update(*sides, restarts=restarts)
    assert float(metric.compute()) == pytest.approx(expected("kernelwise"), rel=1e-12)


def test_not_finite_is_named_when_computed():
    metric, (source, target) = filled(), batch(0)
    source["bias"][1, 1] = torch.nan
    metric.update(source, target)
    with pytest.raises(ValueError, match="source holds nan or inf in unit 'bias'"):
        metric.compute()


def shared(rank):
    """What a process's metrics give, of every kind, by batch and by restart."""
    values = {}
    for kind in KINDS:
        by_batch, by_restart = (PrincipalGradientGap(UNITS, RESTARTS, kind) for _ in range(2))
        for seed in range(rank, BATCHES, 2):
            by_batch.update(*batch(seed))
        mine = [0] if rank == 0 else [1, 2, 3]
        for seed in range(BATCHES):
            by_restart.update(*(rows(side, mine) for side in batch(seed)), restarts=mine)
        values[kind] = float(by_batch.compute()), float(by_restart.compute())
        # After the sync each rank has its own sums back and can go on.
        assert by_restart.count.tolist() == [BATCHES if number in mine else 0 for number in range(RESTARTS)]
    return values


def test_two_processes_give_what_one_gives(tmp_path):
    for values in in_two_processes(shared, tmp_path):
        for kind, (by_batch, by_restart) in values.items():
            alone = float(filled(kind).compute())
            assert by_batch == pytest.approx(alone, rel=1e-12)
            assert by_restart == alone

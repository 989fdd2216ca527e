"""Task2Vec distances: cases by hand, what they must not depend on, and the metric that sums over batches."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pge_lightning.functional.distances import task2vec_distance, task2vec_distances, task2vec_embedding
from pge_lightning.metrics.task2vec import Task2VecDistance

SHAPES = {"conv.weight": (4, 2, 3, 3), "conv.bias": (4,), "linear.weight": (3, 5)}


def fisher(seed, restarts=2):
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.rand(restarts, *shape, generator=generator) for name, shape in SHAPES.items()}


def test_filters_are_rows_of_matrices_and_kernels_in_the_order_of_names():
    units = fisher(0)
    expected = torch.cat([units["conv.weight"].mean((2, 3, 4)), units["linear.weight"].mean(2)], dim=1).double()
    torch.testing.assert_close(task2vec_embedding(units), expected)


def test_vectors_count_where_there_is_nothing_else():
    only = {"bias": torch.tensor([[1.0, 2.0]]), "scalar": torch.tensor([3.0])}
    assert task2vec_embedding(only).tolist() == [[1.0, 2.0, 3.0]]


def test_the_symmetric_distance_of_a_case_by_hand():
    source = {"w": torch.tensor([[[1.0], [3.0], [0.0], [0.0]]])}
    target = {"w": torch.tensor([[[3.0], [1.0], [2.0], [0.0]]])}
    # Shares (1/4, 3/4, 0) and (3/4, 1/4, 1); the last filter holds nothing on either side.
    cosine = (2 * 3 / 16) / math.sqrt(10 / 16 * 26 / 16)
    assert task2vec_distance(source, target, asymmetric=False).item() == pytest.approx(1 - cosine, rel=1e-12)


def test_the_asymmetric_distance_takes_off_the_sources_own_from_the_trivial_task():
    source, target, level = fisher(0), fisher(1), fisher(2)
    for trivial in (None, level):
        if trivial is None:
            trivial = {
                name: stack.flatten(1).mean(1).reshape(-1, *[1] * (stack.ndim - 1)).expand_as(stack)
                for name, stack in source.items()
            }
        plain = task2vec_distances(source, target, asymmetric=False)
        expected = plain - 0.3 * task2vec_distances(source, trivial, asymmetric=False)
        given_trivial = None if trivial is not level else level
        found = task2vec_distances(source, target, alpha=0.3, trivial=given_trivial)
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9)
        assert not torch.equal(found, plain)


def test_a_source_that_tells_filters_apart_comes_nearer():
    even, uneven, target = ({"w": torch.tensor([[[a], [b]]])} for a, b in ((1.0, 1.0), (9.0, 1.0), (3.0, 1.0)))
    symmetric = [task2vec_distance(side, target, asymmetric=False) for side in (even, uneven)]
    asymmetric = [task2vec_distance(side, target) for side in (even, uneven)]
    assert asymmetric[0] == symmetric[0]
    assert asymmetric[1] < symmetric[1]


def test_the_distance_is_the_mean_over_restarts():
    source, target = fisher(0, restarts=3), fisher(1, restarts=3)
    each = task2vec_distances(source, target)
    assert each.shape == (3,)
    assert len(set(each.tolist())) == 3
    assert task2vec_distance(source, target).item() == pytest.approx(each.mean().item(), rel=1e-12)


@given(st.integers(0, 10_000), st.floats(1e-6, 1e6))
@settings(max_examples=25, deadline=None)
def test_identity_symmetry_range_and_scale(seed, scale):
    source, target = fisher(seed), fisher(seed + 20_000)
    distance = task2vec_distance(source, target, asymmetric=False)
    assert 0 < distance <= 1
    assert -0.15 <= task2vec_distance(source, target) <= 1
    assert distance == task2vec_distance(target, source, asymmetric=False)
    assert task2vec_distance(source, source, asymmetric=False).item() == pytest.approx(0, abs=1e-12)
    scaled = [{name: stack * scale for name, stack in side.items()} for side in (source, target)]
    torch.testing.assert_close(task2vec_distance(*scaled, asymmetric=False), distance, rtol=1e-3, atol=1e-5)


def test_one_side_without_information_is_as_far_as_can_be():
    something, nothing = {"w": torch.ones(1, 2, 2)}, {"w": torch.zeros(1, 2, 2)}
    assert task2vec_distance(something, nothing, asymmetric=False) == 1
    with pytest.raises(ValueError, match="Expected Fisher information above 0 in some filter"):
        task2vec_distance(nothing, nothing)


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ({"w": -torch.ones(1, 2, 2)}, "unit 'w' holds less. Collect the signatures with a probe of"),
        ({"w": torch.full((1, 2, 2), torch.nan)}, "Expected finite"),
        ({"w": torch.ones(1, 3, 2)}, "to have one shape"),
        ({"v": torch.ones(1, 2, 2)}, "on one side only"),
    ],
)
def test_what_is_no_fisher_information_is_refused(target, message):
    with pytest.raises(ValueError, match=message):
        task2vec_distance({"w": torch.ones(1, 2, 2)}, target)


def observations(seed, count):
    generator = torch.Generator().manual_seed(seed)
    return [{name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()} for _ in range(count)]


def test_the_metric_gives_the_distance_of_the_mean_squares():
    metric = Task2VecDistance(SHAPES)
    sides = {True: observations(0, 5), False: observations(1, 3)}
    for source, gradients in sides.items():
        for each in gradients:
            metric.update(each, source=source)
    means = {
        side: {name: torch.stack([each[name] for each in seen]).double().square().mean(0)[None] for name in SHAPES}
        for side, seen in sides.items()
    }
    torch.testing.assert_close(metric.compute(), task2vec_distance(means[True], means[False]))
    assert metric.plot()[1].get_title() is not None


def test_metrics_of_two_processes_add_up():
    whole, *parts = (Task2VecDistance(SHAPES, alpha=0.5) for _ in range(3))
    for number, (ours, its) in enumerate(zip(observations(0, 4), observations(1, 4), strict=True)):
        for metric in (whole, parts[number % 2]):
            metric.update(ours, source=True)
            metric.update(its, source=False)
    expected = whole.compute()
    parts[0].merge_state(parts[1])
    torch.testing.assert_close(parts[0].compute(), expected)


def test_the_metric_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match="at least one weight unit"):
        Task2VecDistance({})
    metric = Task2VecDistance({"w": (2, 2)})
    with pytest.raises(ValueError, match="Expected gradients of shapes"):
        metric.update({"w": torch.ones(3, 2)}, source=True)
    metric.update({"w": torch.ones(2, 2)}, source=True)
    with pytest.warns(UserWarning, match="compute"), pytest.raises(ValueError, match="one has none"):
        Task2VecDistance({"w": (2, 2)}).compute()
    with pytest.raises(ValueError, match="one has none"):
        metric.compute()

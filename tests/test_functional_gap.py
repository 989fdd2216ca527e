"""The three formulas: identities, a slow reference, and what they refuse."""

import math
import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pge_lightning.functional import layerwise_gap, principal_gradient_gap, published_gap, spread_weights, unit_gap
from pge_lightning.functional.gap import KINDS, gaps_by_unit, left_out_gaps

SHAPES = {"conv.weight": (4, 3, 3, 3), "conv.bias": (4,), "scale": (), "linear.weight": (5, 7)}


def stack(seed, restarts=3, shapes=SHAPES, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    return {name: scale * torch.randn(restarts, *shape, generator=generator) for name, shape in shapes.items()}


def same(gap, value):
    """Equal to the last bit."""
    return torch.equal(gap, torch.as_tensor(value, dtype=torch.float64))


def rows(units):
    """Python floats, ``[restart][unit][element]``, by nothing but loops."""
    names = sorted(units)
    return [[units[name][k].flatten().tolist() for name in names] for k in range(len(units[names[0]]))]


def dot(a, b):
    return math.fsum(x * y for x, y in zip(a, b, strict=True))


def cosine(a, b):
    return dot(a, b) / (math.sqrt(dot(a, a)) * math.sqrt(dot(b, b)))


def mean_gradient(units):
    every = [[x for unit in restart for x in unit] for restart in rows(units)]
    return [math.fsum(column) / len(every) for column in zip(*every, strict=True)]


def reference(source, target, kind):
    if kind == "kernelwise":
        kernels = [name for name, value in source.items() if value.ndim >= 3]
        kernels = kernels[:-1] or kernels or list(source)
        return reference({n: source[n] for n in kernels}, {n: target[n] for n in kernels}, "layerwise")
    if kind == "layerwise":
        pairs = zip(rows(source), rows(target), strict=True)
        return np.mean([[1 - cosine(a, b) for a, b in zip(s, t, strict=True)] for s, t in pairs])
    s, t = mean_gradient(source), mean_gradient(target)
    if kind == "unit":
        return math.sqrt(2 - 2 * cosine(s, t))
    difference = [a - b for a, b in zip(s, t, strict=True)]
    return math.sqrt(dot(difference, difference)) / math.sqrt(dot(s, s) * dot(t, t))


seeds = st.integers(0, 2**30)
kinds = st.sampled_from(KINDS)


@given(seeds, seeds, kinds, st.integers(1, 4), st.floats(1e-6, 1e6))
@settings(max_examples=40, deadline=None)
def test_agrees_with_the_slow_reference(a, b, kind, restarts, scale):
    source, target = stack(2 * a, restarts), stack(2 * b + 1, restarts, scale=scale)
    assert float(principal_gradient_gap(source, target, kind)) == pytest.approx(reference(source, target, kind), 1e-6)


def test_the_kernel_next_to_the_head_has_no_say_where_there_are_others():
    source = {"first": torch.ones(1, 2, 2), "bias": torch.ones(1, 2), "last": torch.ones(1, 2, 2)}
    target = {**source, "last": -source["last"]}
    assert gaps_by_unit(source, target, "kernelwise").tolist() == [[0.0]]
    assert gaps_by_unit(source, target, "layerwise").tolist() == [[0.0, 0.0, 2.0]]
    without = ({name: side[name] for name in ("bias", "last")} for side in (source, target))
    assert gaps_by_unit(*without, "kernelwise").tolist() == [[2.0]]
    turned = dict(reversed(target.items()))  # the order says nothing where the sides do not agree on it
    assert gaps_by_unit(source, turned, "kernelwise").tolist() == [[0.0, 2.0]]
    with pytest.raises(ValueError, match="the target holds nan or inf in unit 'last'"):
        gaps_by_unit(source, {**target, "last": target["last"] * torch.nan}, "kernelwise")


@given(seeds, kinds, st.integers(1, 4), st.floats(1e-20, 1e15))
@settings(max_examples=60, deadline=None)
def test_gap_to_itself_is_exactly_zero(seed, kind, restarts, scale):
    source = stack(seed, restarts, scale=scale)
    assert same(principal_gradient_gap(source, source, kind), 0.0)
    copy = {name: source[name].clone() for name in reversed(source)}
    assert same(principal_gradient_gap(source, copy, kind), 0.0)


@given(seeds, seeds, kinds)
@settings(max_examples=40, deadline=None)
def test_symmetry_is_exact_in_any_order_of_units(a, b, kind):
    source, target = stack(a), stack(b, scale=3.0)
    target = {name: target[name] for name in reversed(target)}
    assert torch.equal(principal_gradient_gap(source, target, kind), principal_gradient_gap(target, source, kind))


@given(seeds, st.integers(-20, 20), st.sampled_from(("layerwise", "unit")))
@settings(max_examples=40, deadline=None)
def test_a_power_of_two_changes_nothing_at_all(seed, power, kind):
    source, target = stack(seed), stack(seed + 1)
    scaled = {name: unit * 2.0**power for name, unit in source.items()}
    assert torch.equal(principal_gradient_gap(scaled, target, kind), principal_gradient_gap(source, target, kind))


@given(seeds, st.floats(1e-3, 1e3), st.sampled_from(("layerwise", "unit")))
@settings(max_examples=40, deadline=None)
def test_any_scale_changes_nothing_beyond_rounding(seed, factor, kind):
    source, target = ({name: unit.double() for name, unit in stack(seed + i).items()} for i in (0, 1))
    scaled = {name: unit * factor for name, unit in source.items()}
    value = float(principal_gradient_gap(source, target, kind))
    assert float(principal_gradient_gap(scaled, target, kind)) == pytest.approx(value, rel=0, abs=1e-12)
    assert float(principal_gradient_gap(scaled, source, kind)) == pytest.approx(0.0, abs=1e-12)


def test_layerwise_does_not_change_when_one_unit_of_one_restart_is_scaled():
    source, target = stack(0), stack(1)
    expected = layerwise_gap(source, target)
    source["conv.weight"][1] *= 8.0
    assert torch.equal(layerwise_gap(source, target), expected)


@given(seeds, st.floats(1e-3, 1e3))
@settings(max_examples=40, deadline=None)
def test_published_form_is_its_three_term_expansion(seed, scale):
    source, target = stack(seed), stack(seed + 1, scale=scale)
    s, t = mean_gradient(source), mean_gradient(target)
    expansion = 1 / dot(s, s) + 1 / dot(t, t) - 2 * cosine(s, t) / math.sqrt(dot(s, s) * dot(t, t))
    assert float(published_gap(source, target)) ** 2 == pytest.approx(expansion, rel=1e-10)


@pytest.mark.parametrize("factor", [0.25, 2.0, 1024.0])
def test_published_form_of_gradients_c_times_as_long_is_c_times_smaller(factor):
    source, target = stack(0), stack(1)
    longer = [{name: unit * factor for name, unit in side.items()} for side in (source, target)]
    assert same(published_gap(*longer), published_gap(source, target) / factor)


@given(seeds, st.sampled_from(("unit", "published")), st.integers(2, 5))
@settings(max_examples=30, deadline=None)
def test_leaving_a_restart_out_is_the_gap_of_the_others(seed, kind, restarts):
    source, target = stack(seed, restarts), stack(seed + 1, restarts)
    for left_out, gap in enumerate(left_out_gaps(source, target, kind)):
        others = [k for k in range(restarts) if k != left_out]
        sides = [{name: unit[others] for name, unit in side.items()} for side in (source, target)]
        assert float(gap) == pytest.approx(float(principal_gradient_gap(*sides, kind)), rel=1e-12)
    assert left_out_gaps(source, source, kind).tolist() == [0.0] * restarts


def test_known_values():
    right, up = {"w": torch.tensor([[3.0, 0.0]])}, {"w": torch.tensor([[0.0, 4.0]])}
    left = {"w": torch.tensor([[-1.0, 0.0]])}
    assert float(published_gap(right, up)) == pytest.approx(5 / 12, rel=1e-15)
    assert float(unit_gap(right, up)) == pytest.approx(math.sqrt(2), rel=1e-15)
    assert layerwise_gap(right, up).tolist() == [1.0]
    assert layerwise_gap(right, left).tolist() == [2.0]
    assert same(unit_gap(right, left), 2.0)


@given(seeds, st.integers(1, 5))
@settings(max_examples=30, deadline=None)
def test_layerwise_is_per_restart_and_within_its_range(seed, restarts):
    source, target = stack(seed, restarts), stack(seed + 1, restarts)
    gaps = layerwise_gap(source, target)
    assert gaps.shape == (restarts,)
    assert gaps.dtype == torch.float64
    assert bool(((gaps >= 0) & (gaps <= 2)).all())
    first = {name: unit[:1] for name, unit in source.items()}, {name: unit[:1] for name, unit in target.items()}
    assert layerwise_gap(*first).tolist() == pytest.approx(gaps[:1].tolist(), rel=1e-14)
    opposite = {name: -unit for name, unit in source.items()}
    assert layerwise_gap(source, opposite).tolist() == [2.0] * restarts


def test_units_longer_than_a_piece_and_empty_units_count_right():
    shapes = {"large": (300, 400), "empty": (0, 3)}
    source, target = stack(0, 2, shapes), stack(1, 2, shapes)
    s, t = source["large"].flatten(1).double().numpy(), target["large"].flatten(1).double().numpy()
    expected = 1 - (s * t).sum(1) / np.linalg.norm(s, axis=1) / np.linalg.norm(t, axis=1)
    assert layerwise_gap(source, target).numpy() == pytest.approx(expected / 2, rel=1e-12)


def test_zero_on_both_sides_is_equal_and_on_one_side_orthogonal():
    zero, one = torch.zeros(1, 2), torch.ones(1, 2)
    assert layerwise_gap({"w": zero}, {"w": zero}).tolist() == [0.0]
    assert layerwise_gap({"w": zero}, {"w": one}).tolist() == [1.0]
    assert layerwise_gap({"w": one, "dead": zero}, {"w": one, "dead": zero}).tolist() == [0.0]
    assert same(unit_gap({"w": one, "dead": zero}, {"w": one, "dead": zero}), 0.0)
    assert float(published_gap({"w": one, "dead": zero}, {"w": one, "dead": one})) == pytest.approx(0.5, rel=1e-15)


@pytest.mark.parametrize("kind", ["unit", "published"])
@pytest.mark.parametrize("side", ["source", "target"])
def test_all_zero_side_has_no_direction(kind, side):
    sides = {"source": stack(0), "target": stack(1)}
    sides[side] = {name: torch.zeros_like(unit) for name, unit in sides[side].items()}
    with pytest.raises(ValueError, match=f"mean over restarts of the {side} is zero"):
        principal_gradient_gap(sides["source"], sides["target"], kind)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("side", ["source", "target"])
def test_not_finite_is_refused_with_the_name_of_the_unit(kind, bad, side):
    sides = {"source": stack(0), "target": stack(1)}
    sides[side]["linear.weight"][1, 2, 3] = bad
    with pytest.raises(ValueError, match=f"the {side} holds nan or inf in unit 'linear.weight'"):
        principal_gradient_gap(sides["source"], sides["target"], kind)


def test_opposite_infinities_do_not_cancel():
    source = {"w": torch.tensor([[math.inf], [-math.inf]])}
    with pytest.raises(ValueError, match="nan or inf in unit 'w'"):
        published_gap(source, {"w": torch.ones(2, 1)})


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("source", "target", "message"),
    [
        ({"a": torch.ones(2, 3)}, {"b": torch.ones(2, 3)}, r"same units on both sides, but \['a', 'b'\]"),
        ({"a": torch.ones(2, 3)}, {"a": torch.ones(2, 4)}, r"unit 'a' to have one shape.*\[2, 3\] and \[2, 4\]"),
        ({"a": torch.ones(2, 3)}, {"a": torch.ones(3, 3)}, "number of restarts"),
        ({"a": torch.ones(2, 3), "b": torch.ones(3, 3)},) * 2 + ("one number of restarts",),
        ({"a": torch.ones(0, 3)}, {"a": torch.ones(0, 3)}, "number of restarts"),
        ({"a": torch.tensor(1.0)}, {"a": torch.tensor(1.0)}, "number of restarts"),
        ({}, {}, "at least one weight unit"),
    ],
)
def test_other_layouts_are_refused(kind, source, target, message):
    with pytest.raises(ValueError, match=message):
        principal_gradient_gap(source, target, kind)


def test_unknown_kind_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"'layerwise', 'unit', 'published'.*'cosine'"):
        principal_gradient_gap(stack(0), stack(1), "cosine")


def test_gradients_with_a_graph_give_a_value_without_one():
    source = {name: unit.requires_grad_() for name, unit in stack(0).items()}
    assert not any(principal_gradient_gap(source, stack(1), kind).requires_grad for kind in KINDS)


def test_comparing_is_quick():
    shapes = {f"layer{i}": (100, 100) for i in range(10)}
    source, target = stack(0, 8, shapes), stack(1, 8, shapes)
    seconds = []
    for _ in range(10):
        start = time.perf_counter()
        principal_gradient_gap(source, target)
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 0.1  # a few ms on a free core; the bound only catches a slip of an order of magnitude


def test_weights_give_every_unit_an_equal_say():
    gaps = torch.rand(5, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    weights = spread_weights(gaps * torch.tensor([1.0, 10.0, 100.0, 0.0], dtype=torch.float64))
    plain = spread_weights(gaps)
    assert weights.sum().item() == pytest.approx(1.0, rel=1e-12)
    assert not weights[3]
    assert (weights[:2] / weights[1:3]).tolist() == pytest.approx((10 * plain[:2] / plain[1:3]).tolist(), rel=1e-9)


@pytest.mark.parametrize("gaps", [torch.rand(2, 3, 4), torch.ones(5, 3, 4)], ids=["two sources", "no spread"])
def test_weights_are_equal_where_nothing_tells_units_apart(gaps):
    assert spread_weights(gaps.double()).tolist() == [0.25] * 4

"""Directions: gaps from gradients of length one are those of the gradients, and nothing slips through."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pge_lightning.functional.directions import directions, gaps_of_directions
from pge_lightning.functional.gap import gaps_by_unit

SHAPES = {"conv.weight": (4, 3, 3, 3), "conv.bias": (4,), "scale": (), "linear.weight": (5, 7)}
KINDS = ["kernelwise", "layerwise"]


def stack(seed, restarts=3, shapes=SHAPES, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    return {name: scale * torch.randn(restarts, *shape, generator=generator) for name, shape in shapes.items()}


def gaps(source, target, kind):
    return gaps_of_directions(directions(source, kind), directions(target, kind))


@given(st.integers(0, 2**30), st.sampled_from(KINDS), st.integers(1, 4), st.floats(1e-30, 1e30))
@settings(max_examples=40, deadline=None)
def test_gaps_are_those_of_the_gradients(seed, kind, restarts, scale):
    source, target = stack(2 * seed, restarts), stack(2 * seed + 1, restarts, scale=scale)
    near = {name: source[name] + 1e-3 * target[name] / scale for name in source}
    for one, other in ((source, target), (source, near), (near, source), (source, source)):
        found = gaps(one, other, kind)
        assert found.dtype == torch.float64
        assert torch.allclose(found, gaps_by_unit(one, other, kind), rtol=0, atol=1e-6)
        assert torch.equal(found, gaps(other, one, kind))
        assert 0 <= found.min() <= found.max() <= 2


def test_units_larger_than_a_piece_are_compared_row_by_row():
    shapes = {"weight": (600, 700), "last": (1, 1)}
    source, target = stack(0, shapes=shapes), stack(1, shapes=shapes)
    target["weight"] += 0.1 * source["weight"]
    found = gaps(source, target, "kernelwise")
    assert torch.allclose(found, gaps_by_unit(source, target, "kernelwise"), rtol=0, atol=1e-6)
    assert found.shape == (3, 1)


@pytest.mark.parametrize("kind", KINDS)
def test_only_the_units_of_the_formula_are_left_as_rows_of_length_one(kind):
    found = directions(stack(0), kind)
    assert list(found) == (["conv.weight"] if kind == "kernelwise" else sorted(SHAPES))
    for name, rows in found.items():
        assert rows.dtype == torch.float32
        assert rows.shape == (3, torch.Size(SHAPES[name]).numel())
        assert torch.allclose(rows.double().norm(dim=1), torch.ones(3, dtype=torch.float64), atol=1e-7)


def test_the_kernel_next_to_the_head_is_the_last_of_the_stack_and_not_of_the_alphabet():
    units = dict(reversed(stack(0).items()))
    assert list(directions(units, "kernelwise")) == ["linear.weight"]
    assert list(directions({"bias": torch.ones(2, 3)}, "kernelwise")) == ["bias"]
    assert list(directions({"bias": torch.ones(2, 3), "only": torch.ones(2, 3, 3)}, "kernelwise")) == ["only"]


@pytest.mark.parametrize("kind", KINDS)
def test_zero_on_both_sides_is_equal_and_on_one_side_orthogonal(kind):
    source, target = stack(0), stack(1)
    source["conv.weight"][:2], target["conv.weight"][1:] = 0, 0
    column = list(directions(source, kind)).index("conv.weight")
    found = gaps(source, target, kind)[:, column]
    assert found.tolist() == gaps_by_unit(source, target, kind)[:, column].tolist() == [1.0, 0.0, 1.0]
    assert directions(source, kind)["conv.weight"][0].count_nonzero() == 0


@pytest.mark.parametrize("kind", KINDS)
def test_no_gradient_has_a_gap_to_itself(kind):
    assert gaps(stack(0), stack(0), kind).count_nonzero() == 0
    assert gaps(stack(0), {name: 2 * unit for name, unit in stack(0).items()}, kind).count_nonzero() == 0


def test_gradients_that_are_orthogonal_without_being_zero_have_a_gap_of_one():
    source, target = ({"weight": torch.tensor([[row]])} for row in ([1.0, 0.0], [0.0, 2.0]))
    assert gaps(source, target, "kernelwise").tolist() == [[1.0]]


@pytest.mark.parametrize("scale", [1e-44, 8e37])
def test_no_length_is_too_small_or_too_large(scale):
    units = {"weight": torch.tensor([[[3.0, 4.0]]]) * scale}
    exact = units["weight"].double()[0, 0] / units["weight"].double().norm()
    assert torch.allclose(directions(units, "kernelwise")["weight"][0].double(), exact, rtol=1e-7)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("unit", ["conv.weight", "conv.bias", "linear.weight"])
def test_values_that_are_not_finite_are_refused_in_any_unit(unit, value):
    units = stack(0)
    units[unit][1].view(-1)[0] = value
    with pytest.raises(ValueError, match=f"source holds nan or inf in unit '{unit}'"):
        directions(units, "kernelwise")


def test_the_stack_is_left_alone():
    units = stack(0)
    before = {name: unit.clone() for name, unit in units.items()}
    directions(units, "layerwise")["scale"] += 1
    assert all(torch.equal(units[name], unit) for name, unit in before.items())

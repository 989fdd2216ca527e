"""The benchmark of the default's choices: what it does to signatures."""

import sys
from importlib import import_module
from pathlib import Path

import pytest
import torch

from pge_lightning.collect.starts import Starts
from pge_lightning.probe import Probe
from pge_lightning.reference import Classifier, ImageEncoder
from pge_lightning.signature import Signature

sys.path.append(str(Path(__file__).parents[1] / "examples" / "benchmarks"))
ablation = import_module("ablation")
FORMS, HeadFirst, Setting, reduced, rounded = (
    getattr(ablation, name) for name in ("FORMS", "HeadFirst", "Setting", "reduced", "rounded")
)

ShrunkHead = import_module("signatures").ShrunkHead


@pytest.fixture
def stack():
    return torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(0))


def signature(**units):
    return Signature(units, {}, Probe(restarts=2), 200, 2, "data", 200)


def test_rounding_keeps_so_many_digits(stack):
    assert torch.equal(rounded(stack, 23), stack)
    assert torch.equal(rounded(stack, 7), stack.bfloat16().float())


def test_magnitudes_and_products_do_not_know_the_sign(stack):
    for form in ("magnitude", "square", "rows", "columns", "row_products", "column_products"):
        torch.testing.assert_close(FORMS[form](-stack), FORMS[form](stack))
    assert torch.equal(FORMS["update"](-stack), -stack)


def test_products_do_not_know_a_rotation_of_the_other_side(stack):
    rotation, _ = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(1)))
    torch.testing.assert_close(FORMS["row_products"](stack @ rotation), FORMS["row_products"](stack))
    assert not torch.allclose(FORMS["column_products"](stack @ rotation), FORMS["column_products"](stack))


def test_only_kernels_are_changed(stack):
    bias = torch.tensor([[-1.0], [2.0]])
    found = reduced(signature(kernel=stack, bias=bias), Setting(form="magnitude"))
    assert torch.equal(found.units["bias"], bias)
    assert torch.equal(found.units["kernel"], stack.abs())


def test_a_kernel_is_left_out_by_its_number(stack):
    found = reduced(signature(first=stack, bias=torch.ones(2, 1), last=stack), Setting(without=-1))
    assert [*found.units] == ["first", "bias"]


def test_sketches_keep_inner_products_roughly(stack):
    wide = torch.randn(2, 64, 64, generator=torch.Generator().manual_seed(2))
    found = reduced(signature(kernel=wide), Setting(sketch=2048)).units["kernel"].flatten(1)
    before = torch.nn.functional.cosine_similarity(wide[0].flatten(), wide[0].flatten() + wide[1].flatten(), dim=0)
    after = torch.nn.functional.cosine_similarity(found[0], found[0] + found[1], dim=0)
    # The cosine of so many random projections scatters by one over the root of 2,048, which is .022.
    assert abs(before - after) < 0.1


def test_the_head_alone_learns_first_in_every_warm_up():
    module = Classifier(ImageEncoder(), num_classes=2)
    batch = torch.randn(4, 1, 16, 16), torch.tensor([0, 1, 0, 1])
    loss, reached = HeadFirst(2, 3), []
    for _ in range(6):
        module.zero_grad()
        loss(module, batch).backward()
        assert module.head.weight.grad.any()
        reached.append(next(module.encoder.parameters()).grad is not None)
    assert reached == [False, False, True, False, False, True]


def test_every_start_of_a_shrunk_head_is_smaller():
    module = Classifier(ImageEncoder(features=64), num_classes=2)
    largest = []
    for share in (1.0, 0.1):
        module.head = ShrunkHead(64, 2)
        module.head.share = share
        starts = Starts(module, Probe(restarts=2), encoder="encoder")
        starts.check()
        largest.append([starts.make(k, "data").head.weight.abs().max().item() for k in range(2)])
    assert largest[1] == pytest.approx([0.1 * value for value in largest[0]])

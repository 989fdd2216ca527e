"""The target: what estimators may ask, each thing computed when it is asked for, and once."""

import dataclasses
import shutil
from pathlib import Path

import pytest
import torch

from pge_lightning.errors import ArtifactError, PGEError
from pge_lightning.estimators import (
    Combination,
    Estimate,
    FactEstimator,
    FeatureScore,
    GapEstimator,
    RandomOrder,
    Target,
)
from pge_lightning.estimators.opening import attempt
from pge_lightning.library import Library
from pge_lightning.record import Record
from pge_lightning.records import Records
from trainer_helpers import LADDER, AugmentingData, Data, Net, add_source, frozen, make_data, make_loader, plain_loss

OTHER = dataclasses.replace(LADDER, name="other", seed=3)


@pytest.fixture(scope="module")
def collected(tmp_path_factory):
    folder = tmp_path_factory.mktemp("library")
    for name, seed in (("far", 5), ("near", 0)):
        add_source(folder, name, seed=seed)
    return folder


@pytest.fixture
def library(collected, tmp_path):
    return Library(shutil.copytree(collected, tmp_path / "library"))


class Counting:
    """A loss that counts its calls."""

    def __init__(self):
        self.calls = 0

    def __call__(self, module, batch):
        self.calls += 1
        return plain_loss(module, batch)


STEPS = LADDER.restarts * LADDER.steps


def about(library, data=None, **options):
    return Target(Net(), make_loader() if data is None else data, library, **options)


# --- sources


def test_sources_are_opened_and_those_that_cannot_be_are_told_apart(library):
    (Path(library.root) / "far" / "source.json").write_text("{")
    target = about(library)
    assert target.sources["near"] == library.open("near")
    assert isinstance(target.sources["far"], ArtifactError)
    assert target.names == ["near"]
    assert target.failures == {"far": str(target.sources["far"])}


def test_sources_can_be_left_out(library):
    assert about(library, exclude=["far"]).names == ["near"]
    with pytest.raises(PGEError, match=r"there are none beside the excluded \['far', 'near'\]"):
        about(library, exclude=["near", "far"])


def test_without_sources_there_is_nothing_to_choose_from(tmp_path):
    with pytest.raises(PGEError, match=r"there are none\. Train one with PrincipalGradientCallback"):
        about(Library(tmp_path))


def test_only_errors_that_a_source_can_have_are_taken_for_an_answer():
    def fail(error):
        raise error

    for error in (PGEError("a"), ValueError("b"), OSError("c")):
        assert attempt(fail, error) is error
    with pytest.raises(ZeroDivisionError):
        attempt(fail, ZeroDivisionError())
    assert attempt(len, "abc") == 3


# --- what is computed, and when


def test_nothing_is_computed_before_it_is_asked_for(library):
    counting, read = Counting(), []

    class Watched(type(make_data())):
        def __getitem__(self, index):
            read.append(index)
            return super().__getitem__(index)

    loader = torch.utils.data.DataLoader(Watched(*make_data().tensors), batch_size=16)
    target = about(library, loader, loss_fn=counting, features=lambda module, batch: read.append(batch))
    assert (counting.calls, read) == (0, [])
    assert (target.columns, target.details, target.notes) == ({}, {}, [])


def test_a_signature_is_collected_once_per_probe_and_rung(library):
    counting = Counting()
    target = about(library, loss_fn=counting, cache=False, encoder="encoder")
    first = target.signature(LADDER)
    assert target.signature(LADDER) is first
    assert target.signature(LADDER, 64) is first
    assert counting.calls == STEPS
    assert target.signature(LADDER, 16).budget == 16
    assert counting.calls == 2 * STEPS
    assert target.signature(OTHER).probe == OTHER
    assert counting.calls == 3 * STEPS


def test_the_samples_are_read_once_per_probe(library):
    target = about(library)
    assert target.collector(LADDER) is target.collector(dataclasses.replace(LADDER))
    assert target.collector(OTHER) is not target.collector(LADDER)
    assert target.collector(OTHER).data == target.collector(LADDER).data


def test_the_rung_is_what_all_sources_hold_and_the_target_fills(library):
    assert about(library).budget(LADDER) == 64
    assert about(library, make_loader(samples=40)).budget(LADDER) == 32
    add_source(library.root, "small", seed=7, budgets=(16, 32))
    assert about(library).budget(LADDER) == 32
    assert about(library).budget(OTHER) == 64  # nobody holds any
    assert about(library).budget(dataclasses.replace(LADDER, budgets=())) == 64


def test_a_signature_is_kept_for_other_times(library):
    counting = Counting()
    first = about(library, loss_fn=counting).signature(LADDER)
    again = about(library, loss_fn=counting).signature(LADDER)
    assert counting.calls == STEPS
    assert again is not first
    assert frozen(dict(again.units)) == frozen(dict(first.units))
    about(library, loss_fn=counting, cache=False).signature(LADDER)
    assert counting.calls == 2 * STEPS
    about(library, make_loader(seed=4), loss_fn=counting).signature(LADDER)
    assert counting.calls == 3 * STEPS


def test_a_signature_that_cannot_be_kept_is_there_all_the_same(library):
    Path(library.root, ".targets").write_text("a file where the folder should be")
    with pytest.warns(UserWarning, match="signature is not kept for later"):
        assert about(library).signature(LADDER).budget == 64


class Watching:
    """Numbers the sources it is asked about, in the light of each other."""

    name, higher_is_better, needs, cost = "watching", True, frozenset(), "nothing"

    def __init__(self):
        self.asked = []

    def estimate(self, target, sources):
        self.asked.append(list(sources))
        return {name: Estimate(float(len(sources))) for name in sources}


def test_an_estimator_is_asked_once_about_a_source(library):
    target, watching = about(library), Watching()
    assert target.judge(watching, ["far"]) == {"far": Estimate(1.0)}
    assert list(target.judge(watching, ["near", "far"])) == ["near", "far"]
    assert watching.asked == [["far"], ["near"]]
    assert target.known(watching) == target.columns["watching"] == {"far": Estimate(1.0), "near": Estimate(1.0)}
    target.forget()
    assert (target.known(watching), target.columns) == ({}, {})
    assert target.judge(watching, ["near", "far"]) == dict.fromkeys(["near", "far"], Estimate(2.0))
    assert target.judge(watching, ["near"]) == {"near": Estimate(2.0)}
    assert len(watching.asked) == 3


def test_what_was_computed_is_not_forgotten(library):
    counting, calls = Counting(), []

    def features(module, batch):
        calls.append(1)
        return module.encoder(batch[0])

    target = about(library, loss_fn=counting, cache=False, features=features)
    both = Combination({"gap": GapEstimator(LADDER), "score": FeatureScore()})
    first = target.judge(both, target.names)
    target.forget()
    assert target.judge(both, target.names) == first
    assert (counting.calls, len(calls)) == (STEPS, 2)


def test_an_estimator_that_makes_the_target_forget_is_remembered_itself(library):
    class Forgetful(Watching):
        def estimate(self, target, sources):
            target.judge(RandomOrder(), sources)
            target.forget()
            return super().estimate(target, sources)

    target, forgetful = about(library), Forgetful()
    target.judge(forgetful, ["far"])
    assert target.judge(forgetful, ["far", "near"]) == {"far": Estimate(2.0), "near": Estimate(2.0)}
    assert list(target.columns) == ["watching"]
    assert target.judged == [forgetful]


def test_estimators_of_one_name_do_not_answer_for_each_other(library):
    target = about(library)
    first = target.judge(RandomOrder(0), target.names)
    second = target.judge(RandomOrder(1), target.names)
    assert target.known(RandomOrder(0)) == first != second == target.known(RandomOrder(1))
    assert target.columns == {"random": second}


def test_what_was_said_stands_in_columns(library):
    target = about(library)
    target.judge(RandomOrder(), target.names)
    target.judge(FactEstimator("source_size"), ["near"])
    assert {name: list(column) for name, column in target.columns.items()} == {
        "random": ["far", "near"],
        "source_size": ["near"],
    }
    assert target.columns["source_size"] == {"near": Estimate(128.0)}


def test_equal_estimators_answer_once_and_others_for_themselves(library):
    counting = Counting()
    target = about(library, loss_fn=counting, cache=False)
    first = target.judge(GapEstimator(LADDER, weigh=False), target.names)
    assert target.judge(GapEstimator(LADDER, weigh=False), target.names) == first
    unit = target.judge(GapEstimator(LADDER, kind="unit", name="unit"), target.names)
    assert unit != first
    assert counting.calls == STEPS
    assert set(target.columns) == set(target.details) == {"gap", "unit"}


def test_records_are_those_of_the_library_unless_others_are_given(library):
    library.add_record(Record("near", "t", "acc", 0.5))
    assert [record.source for record in about(library).records] == ["near"]
    others = Records([Record("far", "t", "acc", 0.5)])
    assert about(library, records=others).records is others


def test_what_runs_alone_gives_its_result_or_its_error(library):
    target = about(library)
    assert target.alone(lambda: 3) == 3
    with pytest.raises(ZeroDivisionError):
        target.alone(lambda: 1 // 0)


# --- the model and its data


def test_a_data_module_is_read_but_not_set_up(library):
    data = Data()
    target = about(library, data)
    assert target.signature(LADDER).samples == 64
    assert data.called == []
    assert not hasattr(data, "dataset")
    plain = about(library, make_loader())
    assert frozen(dict(target.signature(LADDER).units)) == frozen(dict(plain.signature(LADDER).units))


def test_transfer_hooks_of_a_data_module_take_part_in_features(library):
    data = AugmentingData()
    augmented, plain = about(library, data), about(library, Data())
    assert not torch.equal(augmented.features("near").features, plain.features("near").features)
    assert data.transferred == 0


def test_a_wrong_encoder_is_told_with_the_first_question(library):
    with pytest.raises(PGEError, match="encoder='nowhere'"):
        about(library, encoder="nowhere").signature(LADDER)


def test_the_encoder_is_what_agrees_with_the_sources(library, capsys):
    add_source(library.root, "shallow", encoder="encoder.0")
    add_source(library.root, "wide", module=Net(width=12))
    target = about(library, verbose=True)
    assert set(target.encoder(Net())) == set(library.open("near").load_signature(_first(library, "near")).units)
    assert "Encoder: the 6 units that agree with the sources" in capsys.readouterr().out
    only = about(library, exclude=["near", "far", "wide"])
    assert set(only.encoder(Net())) == {"encoder.0.weight", "encoder.0.bias"}
    assert about(library, encoder="encoder.4").encoder == "encoder.4"
    assert capsys.readouterr().out == ""


def _first(library, name):
    return library.open(name).signatures[0]


def test_where_no_source_agrees_the_encoder_goes_by_its_name(tmp_path):
    source = add_source(tmp_path, "bare")
    library = Library(tmp_path)
    library.register("bare", source.load_weights(), source.facts, [], overwrite=True)
    target = about(library)
    assert target.encoder is None
    assert target.features("bare").features.shape == (64, 4)


def test_two_longest_agreeing_sets_are_ambiguous(tmp_path):
    add_source(tmp_path, "first", encoder="encoder.0")
    add_source(tmp_path, "last", encoder="encoder.4")
    with pytest.raises(PGEError, match=r"2 sets of 2 agree.*encoder="):
        about(Library(tmp_path))


def test_a_signature_that_cannot_be_read_has_no_say_about_the_encoder(library):
    add_source(library.root, "shallow", encoder="encoder.0")
    for name in ("near", "far"):
        for path in (Path(library.root) / name).glob("ladder-*"):
            path.write_bytes(b"damaged")
    assert set(about(library).encoder(Net())) == {"encoder.0.weight", "encoder.0.bias"}

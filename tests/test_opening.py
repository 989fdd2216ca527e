"""Opening: what is there to choose from, which units agree, which rungs, and which data."""

from pathlib import Path

import pytest
from torch.utils.data import DataLoader

from pge_lightning.errors import ArtifactError, PGEError
from pge_lightning.estimators.opening import agreeing_units, agrees, attempt, open_sources, training_data
from pge_lightning.library import Library
from trainer_helpers import LADDER, Data, Net, add_source, frozen, make_loader, module_state, randomness


@pytest.fixture
def library(tmp_path):
    library = Library(tmp_path)
    add_source(library.root, "near", budgets=(16,))
    return library


def units_of(library, model=None):
    return agreeing_units(Net() if model is None else model, [library.open(name) for name in library.names()])


def test_sources_are_opened_by_name_and_failures_kept(library):
    add_source(library.root, "other", budgets=(16,))
    (Path(library.root) / "other" / "source.json").write_text("{")
    found = open_sources(library, exclude=())
    assert found["near"] == library.open("near")
    assert isinstance(found["other"], ArtifactError)
    assert list(open_sources(library, exclude=["other", "nobody"])) == ["near"]


def test_an_empty_library_is_an_error(library, tmp_path):
    with pytest.raises(PGEError, match=r"there are none\. Train one"):
        open_sources(Library(tmp_path / "nowhere"), exclude=())
    with pytest.raises(PGEError, match=r"there are none beside the excluded \['near'\]"):
        open_sources(library, exclude=["near"])


def test_only_errors_that_a_source_can_have_are_taken_for_an_answer():
    def fail(error):
        raise error

    for error in (PGEError("a"), ValueError("b"), OSError("c")):
        assert attempt(fail, error) is error
    with pytest.raises(ZeroDivisionError):
        attempt(fail, ZeroDivisionError())
    assert attempt(len, "abc") == 3


def test_the_longest_agreeing_set_wins_whatever_disagrees(library):
    whole = units_of(library)
    add_source(library.root, "shallow", budgets=(16,), encoder="encoder.0")
    add_source(library.root, "wide", budgets=(16,), module=Net(width=12))
    assert units_of(library) == whole == {name for name in dict(Net().named_parameters()) if "encoder" in name}
    assert units_of(library, Net(width=12)) == whole  # by the names and shapes of the wide one
    assert units_of(library, Net(width=20)) is None
    broken = ArtifactError("damaged")
    assert agreeing_units(Net(), [broken, library.open("shallow")]) == {"encoder.0.weight", "encoder.0.bias"}
    assert agreeing_units(Net(), [broken]) is None


def cut(library, name):
    """Leave the beginning of a signature's file, which still tells its shapes."""
    (file,) = (Path(library.root) / name).glob("ladder-*")
    file.write_bytes(file.read_bytes()[:-4])


def test_a_signature_that_is_damaged_behind_its_shapes_has_no_say(library):
    whole = units_of(library)
    add_source(library.root, "shallow", budgets=(16,), encoder="encoder.0")
    add_source(library.root, "again", seed=5, budgets=(16,))
    cut(library, "again")
    assert units_of(library) == whole
    cut(library, "near")
    assert units_of(library) == {"encoder.0.weight", "encoder.0.bias"}
    cut(library, "shallow")
    assert units_of(library) is None


def test_a_rung_is_not_agreed_on_by_what_is_damaged_behind_its_shapes(library):
    source = library.open("near")
    shapes = source.load_shapes(source.signatures[0])
    assert shapes == source.load_signature(source.signatures[0]).fingerprint["shapes"]
    assert not agrees(source, LADDER, 64, shapes)
    cut(library, "near")
    assert source.load_shapes(source.signatures[0]) == shapes
    assert agrees(source, LADDER, 64, shapes)


def test_two_longest_sets_are_ambiguous(tmp_path):
    library = Library(tmp_path)
    for name, encoder in (("first", "encoder.0"), ("last", "encoder.4")):
        add_source(library.root, name, budgets=(16,), encoder=encoder)
    with pytest.raises(PGEError, match=r"2 sets of 2 agree.*encoder="):
        units_of(library)


def test_a_rung_is_agreed_on_by_those_that_could_be_compared(library):
    source = library.open("near")
    shapes = source.load_signature(source.signatures[0]).fingerprint["shapes"]
    assert agrees(source, LADDER, 16, shapes)
    assert not agrees(source, LADDER, 64, shapes)
    assert agrees(source, LADDER, 64, {"encoder.0.weight": [1, 1]})  # of another architecture: it has no say
    (file,) = (Path(library.root) / "near").glob("ladder-16-*")
    file.write_bytes(b"damaged")
    assert agrees(source, LADDER, 64, shapes)


def test_a_data_module_is_read_through_a_copy(library):
    data = Data()
    before = frozen({"randomness": randomness()})
    loader, copied = training_data(data)
    assert isinstance(loader, DataLoader)
    assert len(loader.dataset) == 64
    assert (data.called, copied.called) == ([], ["prepare_data", "setup fit"])
    assert not hasattr(data, "dataset")
    assert frozen({"randomness": randomness()}) == before
    plain = make_loader()
    assert training_data(plain) == (plain, None)


def test_looking_for_agreement_leaves_the_model_alone(library):
    module = Net()
    before = frozen(module_state(module))
    units_of(library, module)
    assert frozen(module_state(module)) == before

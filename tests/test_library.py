import errno
import json
import multiprocessing
import os
import resource
import time
from dataclasses import replace
from functools import partial
from itertools import count
from pathlib import Path

import pytest
import torch

from pge_lightning.artifact import encode
from pge_lightning.errors import ArtifactError, PGEError
from pge_lightning.library import Library
from pge_lightning.probe import PROBES
from pge_lightning.signature import Signature
from pge_lightning.source import SourceFacts

FACTS = SourceFacts("encoder", 10, 1797, "val_acc", 0.97, 12.5, 3.25, "2025-01-01T00:00:00+00:00", {"seed": 1})
processes = multiprocessing.get_context("forkserver")
processes.set_forkserver_preload(["torch", "pge_lightning.library"])


def make_signature(probe=PROBES["default"], budget=200, seed=0, size=5):
    generator = torch.Generator().manual_seed(seed)
    units = {name: torch.randn(2 if probe.paired else 1, size, generator=generator) for name in ("b", "a")}
    starts = {name: ("x", "y") for name in units} if probe.paired else {}
    return Signature(units, starts, probe, budget, 2, "fingerprint", 1797, 0.5)


def make_weights(seed=0, size=50):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(size, size, generator=generator)
    return {"net.weight": weight, "net.tied": weight, "half": weight.half().T, "steps": torch.tensor(seed)}


def register(library, name, seed=0, overwrite=False, size=50):
    files = [library.put_signature(name, make_signature(budget=budget, seed=seed)) for budget in (200, 1000)]
    files.append(library.put_signature(name, make_signature(PROBES["published"], 1797, seed)))
    return library.register(name, make_weights(seed, size), FACTS, files, overwrite)


def same(a, b):
    return a.keys() == b.keys() and all(a[k].dtype == b[k].dtype and torch.equal(a[k], b[k]) for k in a)


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(params=["local", "memory"])
def library(request, tmp_path):
    made = Library(tmp_path / "sources" if request.param == "local" else f"memory://{tmp_path.name}/sources")
    yield made
    for name in made.names():
        made.remove(name)


@pytest.fixture
def local(tmp_path):
    return Library(tmp_path)


def test_an_absent_or_empty_library_has_no_sources(library):
    assert library.names() == []
    library.check_writable()
    assert library.names() == []


def test_everything_comes_back_bit_for_bit(library):
    registered = register(library, "digits", seed=3)
    source = library.open("digits")
    assert source == registered
    assert source.facts == FACTS
    assert same(source.load_weights(), make_weights(3))
    entry = source.find(PROBES["default"].recipe, 1000)
    back, expected = source.load_signature(entry), make_signature(budget=1000, seed=3)
    assert list(back.units) == ["b", "a"]
    assert same(back.units, expected.units)
    assert (back.starts, back.probe, back.data) == (expected.starts, expected.probe, expected.data)
    library.verify("digits")


def test_find_goes_by_recipe_and_budget(library):
    source = register(library, "digits")
    assert [(entry.probe, entry.budget) for entry in source.signatures] == [
        ("default", 200),
        ("default", 1000),
        ("published", None),
    ]
    assert source.find(replace(PROBES["default"], name="renamed").recipe, 200) == source.signatures[0]
    assert source.find(PROBES["published"].recipe, None) == source.signatures[2]
    assert source.find(PROBES["default"].recipe, 5000) is None
    assert source.find(replace(PROBES["default"], lr=1e-3).recipe, 200) is None


def test_files_are_named_by_their_content(local, tmp_path):
    source = register(local, "digits")
    names = [source.weights_file.file, *(entry.file for entry in source.signatures)]
    assert sorted([*names, "source.json"]) == sorted(os.listdir(tmp_path / "digits"))
    assert names[0] == f"encoder-{source.weights_file.sha256[:12]}.safetensors"
    assert names[1] == f"default-200-{source.signatures[0].sha256[:12]}.safetensors"
    assert local.put_signature("digits", make_signature()) == names[1]


def test_a_relative_root_does_not_follow_the_working_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    library = Library("sources")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    register(library, "digits")
    assert Library(tmp_path / "sources").names() == ["digits"]


def test_storage_options_reach_the_file_system(tmp_path):
    library = Library(tmp_path / "new", storage_options={"auto_mkdir": False})
    assert library._fs.auto_mkdir is False
    library.check_writable()
    assert os.listdir(tmp_path / "new") == []


def test_names_lists_finished_and_damaged_sources_only(local, tmp_path):
    register(local, "usps")
    register(local, "digits")
    register(local, "damaged")
    (tmp_path / "damaged" / "source.json").write_text("{")
    local.put_signature("unfinished", make_signature())
    (tmp_path / ".hidden").mkdir()
    (tmp_path / ".hidden" / "source.json").write_text("{}")
    (tmp_path / "readme").write_text("a file beside the sources")
    (tmp_path / "source.json").write_text("{}")
    assert local.names() == ["damaged", "digits", "usps"]


def test_a_library_that_is_a_file_or_cannot_be_listed(tmp_path):
    (tmp_path / "file").write_text("")
    assert Library(tmp_path / "file").names() == []
    with pytest.raises(ArtifactError, match="Expected to list"):
        Library(tmp_path / "file" / "below").names()


@pytest.mark.parametrize("name", ["", ".", "..", ".hidden", "a/b", "../up", "a b", "a\\b", "a\n", "a*"])
def test_bad_names_are_refused_everywhere(library, name):
    for use in (library.check_name, library.open, library.verify, library.remove):
        with pytest.raises(ValueError, match="Expected a source name"):
            use(name)
    with pytest.raises(ValueError, match="Expected a source name"):
        library.put_signature(name, make_signature())


def test_a_taken_name_is_refused_before_anything_is_written(local, tmp_path):
    register(local, "digits")
    before = contents(tmp_path / "digits")
    with pytest.raises(PGEError, match=r"'digits' is registered already.*overwrite=True"):
        local.check_name("digits")
    with pytest.raises(PGEError, match="registered already"):
        local.register("digits", make_weights(9), FACTS, [])
    assert contents(tmp_path / "digits") == before
    local.check_name("digits", overwrite=True)
    local.check_name("new-1_a.b")


def test_overwriting_replaces_the_source_and_its_files(local, tmp_path):
    register(local, "digits", seed=1)
    unfinished = local.put_signature("digits", make_signature(seed=5))
    source = register(local, "digits", seed=2, overwrite=True)
    local.verify("digits")
    assert same(local.open("digits").load_weights(), make_weights(2))
    names = {source.weights_file.file, *(entry.file for entry in source.signatures)}
    assert set(os.listdir(tmp_path / "digits")) == {"source.json", unfinished, *names}


def test_overwriting_with_equal_content_keeps_the_files(library):
    first = register(library, "digits")
    assert register(library, "digits", overwrite=True) == first
    library.verify("digits")


def test_overwriting_heals_a_damaged_source(local, tmp_path):
    register(local, "digits")
    for path in (tmp_path / "digits").iterdir():
        path.write_bytes(b"rubbish")
    with pytest.raises(ArtifactError):
        local.verify("digits")
    source = register(local, "digits", overwrite=True)
    local.verify("digits")
    assert local.open("digits") == source


def test_an_unknown_source_lists_what_is_there(library):
    register(library, "digits")
    for use in (library.open, library.verify):
        with pytest.raises(PGEError, match=r"Expected one of the sources \['digits'\], but got 'usps'"):
            use("usps")


def test_an_unfinished_source_is_none_but_its_signatures_can_be_read(library):
    file = library.put_signature("digits", make_signature())
    assert library.names() == []
    assert same(library.get_signature("digits", file).units, make_signature().units)
    with pytest.raises(PGEError, match="Expected one of the sources"):
        library.open("digits")
    library.remove("digits")
    with pytest.raises(ArtifactError, match="Expected to read"):
        library.get_signature("digits", file)


def test_register_refuses_signatures_that_are_not_there(library):
    with pytest.raises(ArtifactError, match="Expected to read"):
        library.register("digits", make_weights(), FACTS, ["default-200-0123456789ab.safetensors"])
    with pytest.raises(ArtifactError, match="Expected the name of a library's file"):
        library.register("digits", make_weights(), FACTS, ["../../secret"])
    assert library.names() == []


def test_remove_takes_the_source_and_leaves_foreign_files(local, tmp_path):
    register(local, "digits")
    register(local, "usps")
    (tmp_path / "usps" / "notes.txt").write_text("mine")
    (tmp_path / "usps" / f".{'0' * 32}.tmp").write_text("left by a killed process")
    local.remove("digits")
    local.remove("usps")
    local.remove("never-there")
    assert local.names() == []
    assert os.listdir(tmp_path) == ["usps"]
    assert os.listdir(tmp_path / "usps") == ["notes.txt"]


@pytest.mark.parametrize("part", ["encoder", "default-200", "default-1000", "published"])
@pytest.mark.parametrize("damage", ["missing", "truncated", "flipped", "empty"])
def test_damaged_files_are_found_out(local, tmp_path, part, damage):
    source = register(local, "digits")
    path = next(path for path in (tmp_path / "digits").iterdir() if path.name.startswith(part))
    data = bytearray(path.read_bytes())
    data[-3] ^= 0x10
    changed = {"truncated": bytes(data)[:-9], "flipped": bytes(data), "empty": b""}
    path.unlink() if damage == "missing" else path.write_bytes(changed[damage])
    with pytest.raises(ArtifactError, match=path.name):
        local.verify("digits")
    assert local.open("digits") == source
    loaders = {entry.file: partial(source.load_signature, entry) for entry in source.signatures}
    with pytest.raises(ArtifactError, match=path.name):
        loaders.get(path.name, source.load_weights)()


def test_every_flipped_byte_of_the_tensors_is_found_out(local, tmp_path):
    library, size = local, 2
    source = library.register("digits", make_weights(size=size), FACTS, [])
    path = tmp_path / "digits" / source.weights_file.file
    data = path.read_bytes()
    for position in range(len(data)):
        path.write_bytes(data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :])
        with pytest.raises(ArtifactError, match="damaged"):
            source.load_weights()


def change(path, **fields):
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"schema": 2}, "Expected schema 1 or older, but got 2. Upgrade"),
        ({"kind": "encoder"}, "Expected a source, but got a 'encoder' file"),
        ({"facts": {}}, "damaged"),
        ({"weights": None}, "damaged"),
        ({"weights": {"file": "../../x", "sha256": "0" * 64}}, "Expected the name of a library's file"),
        ({"weights": {"file": "encoder-0123456789ab.safetensors", "sha256": "0" * 64}}, "damaged"),
        ({"signatures": [{}]}, "damaged"),
    ],
)
def test_damaged_or_newer_source_json(local, tmp_path, fields, message):
    register(local, "digits")
    change(tmp_path / "digits" / "source.json", **fields)
    for use in (local.open, local.verify):
        with pytest.raises(ArtifactError, match=message) as caught:
            use("digits")
        assert "digits/source.json" in str(caught.value)
    assert local.names() == ["digits"]


def test_every_truncation_of_source_json_is_found_out(local, tmp_path):
    register(local, "digits")
    path = tmp_path / "digits" / "source.json"
    data = path.read_bytes()
    for length in range(0, len(data), 7):
        path.write_bytes(data[:length])
        with pytest.raises(ArtifactError):
            local.open("digits")
    path.write_bytes(b"\xff\xfe" + b"[" * 100_000)
    with pytest.raises(ArtifactError):
        local.open("digits")


def test_verify_compares_signatures_with_what_is_said_of_them(local, tmp_path):
    register(local, "digits")
    path = tmp_path / "digits" / "source.json"
    signatures = json.loads(path.read_text())["signatures"]
    signatures[0]["budget"] = 5000
    change(path, signatures=signatures)
    with pytest.raises(ArtifactError, match="but it is another signature"):
        local.verify("digits")


def test_a_right_file_in_the_wrong_place_is_refused(local):
    file = local._folder("digits").write("encoder", encode({}, {}, "other")).file
    with pytest.raises(ArtifactError, match=rf"{file}': Expected a signature, but got a 'other' file"):
        local.get_signature("digits", file)


@pytest.mark.parametrize("root", ["/dev/null/sources", "/proc/sources", "/proc/self/mem"])
def test_a_root_that_cannot_be_written_is_reported_before_work(root):
    with pytest.raises(ArtifactError, match=f"Expected to write '{root}"):
        Library(root).check_writable()


def overwrite_on_a_full_disk(root):
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
    try:
        register(Library(root), "digits", seed=2, overwrite=True, size=100)
    except ArtifactError as error:
        os._exit(error.__cause__.errno)


def test_disk_full_while_overwriting_keeps_the_old_source(local, tmp_path):
    old = register(local, "digits", seed=1)
    process = processes.Process(target=overwrite_on_a_full_disk, args=(tmp_path,))
    process.start()
    process.join()
    assert process.exitcode == errno.EFBIG
    local.verify("digits")
    assert local.open("digits") == old
    assert same(local.open("digits").load_weights(), make_weights(1))
    assert not list(tmp_path.rglob("*.tmp"))


def overwrite_forever(root, started):
    library = Library(root)
    for seed in count(1):
        register(library, "digits", seed=seed, overwrite=True)
        started.set()


def test_a_killed_writer_leaves_the_library_readable(local, tmp_path):
    register(local, "other")
    register(local, "digits")
    for k in range(8):
        started = processes.Event()
        process = processes.Process(target=overwrite_forever, args=(tmp_path, started))
        process.start()
        assert started.wait(30)
        time.sleep(0.0055 * k)
        process.kill()
        process.join()
        assert local.names() == ["digits", "other"]
        local.verify("digits")
        weights = local.open("digits").load_weights()
        assert same(weights, make_weights(int(weights["steps"])))
    local.verify("other")
    local.remove("digits")
    assert os.listdir(tmp_path) == ["other"]


def register_many(root, prefix):
    library = Library(root)
    for k in range(10):
        register(library, f"{prefix}{k}", seed=k)
        register(library, f"{prefix}{k}", seed=k + 1, overwrite=True)


def test_two_processes_do_not_disturb_each_other(tmp_path):
    workers = [processes.Process(target=register_many, args=(tmp_path / "new", prefix)) for prefix in "ab"]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    library = Library(tmp_path / "new")
    assert [worker.exitcode for worker in workers] == [0, 0]
    assert library.names() == [f"{prefix}{k}" for prefix in "ab" for k in range(10)]
    for name in library.names():
        library.verify(name)
        assert len(os.listdir(tmp_path / "new" / name)) == 5


def test_a_signature_is_dropped_unless_a_source_refers_to_it(local):
    kept, other = make_signature(), make_signature(seed=1)
    source = local.register("digits", {"weight": torch.ones(2)}, FACTS, [local.put_signature("digits", kept)])
    local.put_signature("digits", other)
    local.put_signature("unfinished", kept)
    for name, signature in [("digits", kept), ("digits", other), ("unfinished", kept), ("never", other)]:
        local.drop_signature(name, signature)
    local.verify("digits")
    assert local.open("digits") == source
    assert sorted(path.name for path in Path(local.root).iterdir()) == ["digits"]
    assert len(list(Path(local.root, "digits").iterdir())) == 3

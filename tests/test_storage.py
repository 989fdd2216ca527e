"""Files are written as a whole or not at all, and what goes wrong is told with its path."""

import errno
import os
import subprocess
import sys
import zipfile

import fsspec
import pytest
from fsspec.core import url_to_fs

from pge_lightning import storage
from pge_lightning.errors import ArtifactError
from pge_lightning.storage import list_folder, read_bytes, remove_file, write_bytes


@pytest.fixture(params=["local", "memory"])
def place(request, tmp_path):
    fs, path = url_to_fs(str(tmp_path) if request.param == "local" else f"memory://{tmp_path.name}")
    yield fs, path
    if request.param == "memory" and fs.exists(path):
        fs.rm(path, recursive=True)


def test_write_read_list_remove(place):
    fs, root = place
    path = f"{root}/deep/folder/file.bin"
    for data in (b"first" * 1000, b"second"):
        write_bytes(fs, path, data)
        assert read_bytes(fs, path) == data
    assert list_folder(fs, f"{root}/deep/folder") == ["file.bin"]
    assert list_folder(fs, path) == []
    assert list_folder(fs, f"{root}/absent") == []
    remove_file(fs, path)
    remove_file(fs, path)
    assert list_folder(fs, f"{root}/deep/folder") == []


def test_the_beginning_of_a_file_can_be_read(place):
    fs, root = place
    write_bytes(fs, f"{root}/file", b"content")
    assert [read_bytes(fs, f"{root}/file", end) for end in (0, 3, 7, 100, None)] == [
        b"",
        b"con",
        b"content",
        b"content",
        b"content",
    ]


def test_a_file_that_need_not_be_durable_is_written_all_the_same(place):
    fs, root = place
    for data in (b"first", b"second"):
        write_bytes(fs, f"{root}/folder/file", data, durable=False)
        assert read_bytes(fs, f"{root}/folder/file") == data
    assert list_folder(fs, f"{root}/folder") == ["file"]


def test_reading_a_missing_file_names_it(place):
    fs, root = place
    with pytest.raises(ArtifactError, match=r"Expected to read '.*nothing', but got FileNotFoundError"):
        read_bytes(fs, f"{root}/nothing")


def test_written_files_follow_the_umask(tmp_path):
    fs, root = url_to_fs(str(tmp_path))
    write_bytes(fs, f"{root}/file", b"x")
    (tmp_path / "plain").write_bytes(b"x")
    assert (tmp_path / "file").stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize("name", ["/dev/null/file", "/proc/pge/file"])
def test_unwritable_folder_is_reported(name):
    fs, path = url_to_fs(name)
    with pytest.raises(ArtifactError, match=rf"Expected to write '{name}', but got .* choose a path"):
        write_bytes(fs, path, b"x")


def test_a_folder_in_the_way_is_reported_and_the_temporary_removed(tmp_path):
    (tmp_path / "taken" / "inside").mkdir(parents=True)
    fs, root = url_to_fs(str(tmp_path))
    with pytest.raises(ArtifactError, match="IsADirectoryError"):
        write_bytes(fs, f"{root}/taken", b"x")
    assert os.listdir(tmp_path) == ["taken"]
    with pytest.raises(ArtifactError, match="Expected to remove"):
        remove_file(fs, f"{root}/taken")


def test_read_only_file_systems_are_reported(tmp_path):
    archive = tmp_path / "archive.zip"
    with zipfile.ZipFile(archive, "w") as zipped:
        zipped.writestr("kept", b"content")
    fs = fsspec.filesystem("zip", fo=str(archive), mode="r")
    with pytest.raises(ArtifactError, match="Expected to write"):
        write_bytes(fs, "folder/file", b"x")
    assert read_bytes(fs, "kept") == b"content"


def test_a_folder_that_cannot_be_synchronised_is_no_failure(tmp_path):
    storage._sync_folder(str(tmp_path / "absent"))
    assert not (tmp_path / "absent").exists()


FULL = """
import resource, sys
from fsspec.core import url_to_fs
from pge_lightning.storage import write_bytes
from pge_lightning.errors import ArtifactError
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
try:
    write_bytes(*url_to_fs(sys.argv[1]), b"new" * 10_000)
except ArtifactError as error:
    sys.exit(error.__cause__.errno)
"""


def test_disk_full_leaves_the_old_file_and_nothing_else(tmp_path):
    fs, path = url_to_fs(str(tmp_path / "file"))
    write_bytes(fs, path, b"old")
    done = subprocess.run([sys.executable, "-c", FULL, path], check=False)
    assert done.returncode == errno.EFBIG
    assert (tmp_path / "file").read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]

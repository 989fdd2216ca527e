"""Storage: files on any file system, written as a whole or not at all, and errors that name path and cure."""

import os
from collections.abc import Generator
from contextlib import contextmanager, suppress
from uuid import uuid4

from fsspec import AbstractFileSystem
from fsspec.implementations.local import LocalFileSystem

from pge_lightning.errors import ArtifactError

__all__ = ["list_folder", "read_bytes", "remove_file", "write_bytes"]


def write_bytes(fs: AbstractFileSystem, path: str, data: bytes, durable: bool = True) -> None:
    """Write a file as a whole or not at all; whatever lay at ``path`` stays until the new file is complete.

    An ``ArtifactError`` tells if it cannot be written: disk full, no permission, read-only file system.
    The local file system gets a temporary file beside it, synchronised to the disk and renamed; any other file
    system gets a single put, which object stores carry out atomically.

    Args:
        fs: File system.
        path: Path on it, as :func:`fsspec.core.url_to_fs` gives it; missing folders are made.
        data: Content.
        durable: Whether the file is to outlast a machine that goes down at once. It takes many times as long, which is
            in vain where the file can be made again, and its reader tells whether it is whole.
    """
    with _reporting("write", path, "Free some space or choose a path that can be written; the old file is unchanged."):
        if isinstance(fs, LocalFileSystem):
            _replace_local(path, data, durable)
        else:
            fs.makedirs(path.rsplit("/", 1)[0], exist_ok=True)
            fs.pipe_file(path, data)


def _replace_local(path: str, data: bytes, durable: bool) -> None:
    folder = os.path.dirname(path)
    os.makedirs(folder, exist_ok=True)
    temporary = os.path.join(folder, f".{uuid4().hex}.tmp")
    try:
        with open(temporary, "xb") as file:
            file.write(data)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary)
        raise
    if durable:
        _sync_folder(folder)
        _sync_folder(os.path.dirname(folder))  # the folder itself may be new


def _sync_folder(folder: str) -> None:
    # Windows and some network file systems cannot; the file is complete all the same.
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def read_bytes(fs: AbstractFileSystem, path: str, end: int | None = None) -> bytes:
    """Read a file; an ``ArtifactError`` tells if it is missing or cannot be read.

    Args:
        fs: File system.
        path: Path on it.
        end: How many bytes of it, from the first on; by default all.

    Returns:
        Its content.
    """
    with _reporting("read", path, "Check the path and its permissions; if the file is gone, make it again."):
        content: bytes = fs.cat_file(path, end=end)
    return content


def list_folder(fs: AbstractFileSystem, path: str) -> list[str]:
    """List a folder as it is now; an ``ArtifactError`` tells if it cannot be read.

    Args:
        fs: File system.
        path: Path on it.

    Returns:
        Names of the files and folders in it, sorted; none if it does not exist.
    """
    fs.invalidate_cache(path)
    with _reporting("list", path, "Check the path and its permissions."), suppress(FileNotFoundError):
        found = {entry.rstrip("/") for entry in fs.ls(path, detail=False)}
        return sorted(entry.rsplit("/", 1)[-1] for entry in found - {path.rstrip("/")})  # a file lists itself
    return []


def remove_file(fs: AbstractFileSystem, path: str) -> None:
    """Remove a file if it is there; an ``ArtifactError`` tells if it cannot be removed.

    Args:
        fs: File system.
        path: Path on it.
    """
    with _reporting("remove", path, "Check its permissions."), suppress(FileNotFoundError):
        fs.rm_file(path)


@contextmanager
def _reporting(action: str, path: str, cure: str) -> Generator[None, None, None]:
    try:
        yield
    except Exception as error:  # fsspec back ends raise errors of their own kinds
        raise ArtifactError(f"Expected to {action} '{path}', but got {error!r}. {cure}") from error

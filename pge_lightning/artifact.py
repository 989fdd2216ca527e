"""Tensors and a JSON header in one safetensors blob, written atomically on any file system."""

import json
import os
from collections.abc import Generator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict
from typing import Any
from uuid import uuid4

import safetensors.torch
from fsspec import AbstractFileSystem
from fsspec.implementations.local import LocalFileSystem
from safetensors import SafetensorError
from torch import Tensor

from pge_lightning.errors import ArtifactError
from pge_lightning.probe import Probe
from pge_lightning.signature import Signature

__all__ = [
    "SCHEMA",
    "check_header",
    "decode",
    "decode_signature",
    "encode",
    "encode_signature",
    "list_folder",
    "read_bytes",
    "remove_file",
    "write_bytes",
]

SCHEMA = 1
_LONGEST_HEADER = 100_000_000  # safetensors reads no longer one either
_PLAIN_FIELDS = ("budget", "restarts", "data", "samples", "seconds")


def encode(tensors: Mapping[str, Tensor], header: Mapping[str, Any], kind: str) -> bytes:
    """Pack tensors and a header into one safetensors blob; equal content gives equal bytes.

    Args:
        tensors: Dense tensors by name, on any device, contiguous or not, sharing memory or not.
        header: What belongs to them, in JSON types; ``schema`` and ``kind`` are added here.
        kind: What the blob is, for instance ``"signature"``; :func:`decode` asks for it by this word.

    Returns:
        The blob; its metadata hold the header as JSON under the key ``pge``.

    Raises:
        ArtifactError: If safetensors has no form for one of the tensors (sparse, complex double precision).

    Example:
        >>> import torch
        >>> blob = encode({"weight": torch.ones(2)}, {"note": "hello"}, kind="example")
        >>> decode(blob, kind="example")
        ({'weight': tensor([1., 1.])}, {'note': 'hello'})
    """
    text = json.dumps({**header, "schema": SCHEMA, "kind": kind}, sort_keys=True)
    try:
        return safetensors.torch.save(_apart(tensors), metadata={"pge": text})
    except (KeyError, RuntimeError, ValueError, SafetensorError) as error:
        raise ArtifactError(
            f"Expected dense tensors of a type that safetensors stores, but got: {error}. "
            "Leave that tensor out of the encoder, or convert it."
        ) from error


def _apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors with memory of their own: safetensors refuses tied weights and views."""
    plain, seen = dict[str, Tensor](), set[int]()
    for name, tensor in tensors.items():
        value = tensor.detach().cpu().contiguous()
        storage = value.untyped_storage()
        if storage.nbytes() != value.nbytes or storage.data_ptr() in seen:
            value = value.clone()
        seen.add(storage.data_ptr())
        plain[name] = value
    return plain


def decode(data: bytes, kind: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Unpack what :func:`encode` packed; an ``ArtifactError`` says what is wrong with anything else.

    Args:
        data: The blob.
        kind: What it is expected to be.

    Returns:
        The tensors by name, on the CPU, and the header without ``schema`` and ``kind``.

    Raises:
        ArtifactError: If the blob is truncated, foreign, of another kind, or of a newer schema.
    """
    header = check_header(_read_header(data, kind), kind)
    try:
        tensors = safetensors.torch.load(data)
    except (KeyError, RuntimeError, TypeError, ValueError, SafetensorError) as error:
        raise ArtifactError(
            f"Expected a whole {kind} file, but got {len(data)} bytes that are truncated or damaged ({error}). "
            "Copy or make it again."
        ) from error
    return tensors, {key: value for key, value in header.items() if key not in ("schema", "kind")}


def _read_header(data: bytes, kind: str) -> object:
    length = int.from_bytes(data[:8], "little")
    if len(data) < 8 or not 2 <= length <= min(_LONGEST_HEADER, len(data) - 8):
        raise ArtifactError(
            f"Expected a {kind} in a safetensors file, but got {len(data)} bytes that are no such file or only the "
            "beginning of one. Copy or make it again."
        )
    try:
        metadata = json.loads(data[8 : 8 + length])["__metadata__"]
        return json.loads(metadata["pge"])
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise ArtifactError(
            f"Expected a {kind} written by pge-lightning, but got a file without its header: foreign or damaged. "
            "Check the path, or make it again."
        ) from error


def check_header(header: object, kind: str) -> dict[str, Any]:
    """Refuse a header that this version cannot read.

    Args:
        header: Parsed JSON of any origin.
        kind: The kind that is expected.

    Returns:
        The header, now known to be a dictionary of this kind and of a schema that is understood.

    Raises:
        ArtifactError: If it is something else.
    """
    schema = header.get("schema") if isinstance(header, dict) else None
    if not isinstance(header, dict) or type(schema) is not int or schema < 1:
        raise ArtifactError(
            f"Expected a {kind} written by pge-lightning, but got a header without a schema: foreign or damaged. "
            "Check the path, or make it again."
        )
    if schema > SCHEMA:
        raise ArtifactError(f"Expected schema {SCHEMA} or older, but got {schema}. Upgrade pge-lightning.")
    if header.get("kind") != kind:
        raise ArtifactError(f"Expected a {kind}, but got a {header.get('kind')!r} file. Check the path.")
    return header


def encode_signature(signature: Signature) -> bytes:
    """Pack a signature; :func:`decode_signature` gives it back bit for bit, its units in the same order.

    Args:
        signature: The signature.

    Returns:
        A blob of kind ``"signature"``.
    """
    header = {field: getattr(signature, field) for field in _PLAIN_FIELDS}
    header |= {"probe": asdict(signature.probe), "starts": dict(signature.starts), "units": list(signature.units)}
    header["frozen"] = dict(signature.frozen)
    return encode(signature.units, header, kind="signature")


def decode_signature(data: bytes) -> Signature:
    """Unpack what :func:`encode_signature` packed.

    Args:
        data: The blob.

    Returns:
        The signature, its tensors on the CPU.

    Raises:
        ArtifactError: If the blob is damaged, foreign, of another kind, or of a newer schema.
    """
    tensors, header = decode(data, kind="signature")
    try:
        return _to_signature(tensors, header)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ArtifactError(
            f"Expected the header of a signature, but got a damaged one ({error!r}). Copy or collect it again."
        ) from error


def _to_signature(tensors: dict[str, Tensor], header: dict[str, Any]) -> Signature:
    # Sums over units are taken in their order, which safetensors and sorted JSON do not keep.
    units = {name: tensors.pop(name) for name in header["units"]}
    paired = units if header["starts"] else {}
    starts = {name: tuple(map(str, header["starts"][name])) for name in paired}
    if tensors or header["starts"].keys() != starts.keys():
        raise ValueError("names that belong to no unit")
    plain = {field: header[field] for field in _PLAIN_FIELDS}
    frozen = {name: str(digest) for name, digest in header.get("frozen", {}).items()}  # version 0.1 wrote none
    return Signature(units=units, starts=starts, probe=Probe(**header["probe"]), frozen=frozen, **plain)


def write_bytes(fs: AbstractFileSystem, path: str, data: bytes) -> None:
    """Write a file as a whole or not at all; whatever lay at ``path`` stays until the new file is complete.

    An ``ArtifactError`` tells if it cannot be written: disk full, no permission, read-only file system.
    The local file system gets a temporary file beside it, synchronised to the disk and renamed; any other file
    system gets a single put, which object stores carry out atomically.

    Args:
        fs: File system.
        path: Path on it, as :func:`fsspec.core.url_to_fs` gives it; missing folders are made.
        data: Content.
    """
    with _reporting("write", path, "Free some space or choose a path that can be written; the old file is unchanged."):
        if isinstance(fs, LocalFileSystem):
            _replace_local(path, data)
        else:
            fs.makedirs(path.rsplit("/", 1)[0], exist_ok=True)
            fs.pipe_file(path, data)


def _replace_local(path: str, data: bytes) -> None:
    folder = os.path.dirname(path)
    os.makedirs(folder, exist_ok=True)
    temporary = os.path.join(folder, f".{uuid4().hex}.tmp")
    try:
        with open(temporary, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary)
        raise
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


def read_bytes(fs: AbstractFileSystem, path: str) -> bytes:
    """Read a whole file; an ``ArtifactError`` tells if it is missing or cannot be read.

    Args:
        fs: File system.
        path: Path on it.

    Returns:
        Its content.
    """
    with _reporting("read", path, "Check the path and its permissions; if the file is gone, make it again."):
        content: bytes = fs.cat_file(path)
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

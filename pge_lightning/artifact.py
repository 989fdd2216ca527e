"""Tensors and a JSON header in one safetensors blob."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import safetensors.torch
from fsspec import AbstractFileSystem
from safetensors import SafetensorError
from torch import Tensor

from pge_lightning import storage
from pge_lightning.errors import ArtifactError
from pge_lightning.probe import Probe
from pge_lightning.signature import Signature

__all__ = [
    "SCHEMA",
    "check_header",
    "decode",
    "decode_shapes",
    "decode_signature",
    "encode",
    "encode_signature",
    "read_beginning",
]

SCHEMA = 1
_LONGEST_HEADER = 100_000_000  # safetensors reads no longer one either
_BEGINNING = 2**16  # bytes, which hold the header of most signatures
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


def read_beginning(fs: AbstractFileSystem, path: str) -> bytes:
    """Read a stored blob as far as its header goes; an ``ArtifactError`` tells if it cannot be read.

    Args:
        fs: File system.
        path: Path on it.

    Returns:
        The beginning of the file.
    """
    data = storage.read_bytes(fs, path, _BEGINNING)
    length = 8 + int.from_bytes(data[:8], "little")
    return data if length <= len(data) or len(data) < _BEGINNING else storage.read_bytes(fs, path, length)


def decode_shapes(data: bytes, kind: str) -> dict[str, list[int]]:
    """Unpack the shapes of tensors from the beginning of what :func:`encode` packed.

    Args:
        data: The blob, or its beginning with the whole header.
        kind: What it is expected to be.

    Returns:
        Tensor to its shape.

    Raises:
        ArtifactError: If it does not begin as such a blob, or its header goes on.

    Example:
        >>> import torch
        >>> decode_shapes(encode({"weight": torch.ones(2, 3)}, {}, kind="example")[:-4], kind="example")
        {'weight': [2, 3]}
    """
    check_header(_read_header(data, kind), kind)
    try:
        entries = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        return {name: list(entry["shape"]) for name, entry in entries.items() if name != "__metadata__"}
    except (AttributeError, KeyError, TypeError) as error:
        raise ArtifactError(
            f"Expected the shapes of a {kind}, but got a damaged header ({error!r}). Copy or make it again."
        ) from error


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

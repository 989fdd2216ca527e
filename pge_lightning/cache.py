"""What a library keeps although it could be computed again: targets' signatures, sources' directions and their gaps."""

from collections.abc import Collection, Mapping
from contextlib import suppress

import numpy as np
import torch
from fsspec import AbstractFileSystem
from fsspec.implementations.local import LocalFileSystem
from torch import Tensor

from pge_lightning import artifact, storage
from pge_lightning.directions import Directions
from pge_lightning.errors import ArtifactError
from pge_lightning.signature import Signature

__all__ = ["Cache", "key_of"]

_TARGETS, _DIRECTIONS, _GAPS = ".targets", ".directions", ".gaps"
_KEY = 16  # digits of a signature's SHA-256, with which the names of what is kept of it end


def key_of(sha256: str, kind: str) -> str:
    """By what that is kept of a signature for one formula is found again: its content.

    Args:
        sha256: Of the signature's file.
        kind: The formula.

    Returns:
        A key that is fit for a file's name.
    """
    return f"{kind}-{sha256[:_KEY]}"


class Cache:
    """Files beside the sources that may be removed at any time.

    Args:
        fs: The library's file system.
        root: The library's folder.

    Attributes:
        is_local: Whether they lie on this machine. There, small ones are read one after the other: threads would spend
            more on taking the interpreter from each other than a read takes.
    """

    def __init__(self, fs: AbstractFileSystem, root: str) -> None:
        self._fs, self._root = fs, root.rstrip("/")
        self.is_local = isinstance(fs, LocalFileSystem)

    def put_target(self, key: str, signature: Signature) -> None:
        """Keep a target's signature under a key that is fit for a file's name; an ``ArtifactError`` if it cannot."""
        storage.write_bytes(self._fs, self._path(_TARGETS, key), artifact.encode_signature(signature))

    def get_target(self, key: str) -> Signature | None:
        """Look for the kept signature of a target; ``None`` if there is none that can be read."""
        with suppress(ArtifactError):
            return artifact.decode_signature(storage.read_bytes(self._fs, self._path(_TARGETS, key)))
        return None

    def put_directions(self, key: str, directions: Directions) -> None:
        """Keep a source's directions under a key that is fit for a file's name; an ``ArtifactError`` if it cannot."""
        header = {"digests": directions.digests, "sums": _sums_of_words(directions.units)}
        data = artifact.encode(directions.units, header, kind="directions")
        # Not durable: there is one for every source of a library, and damage is told.
        storage.write_bytes(self._fs, self._path(_DIRECTIONS, key), data, durable=False)

    def get_directions(self, key: str) -> Directions | None:
        """Look for the kept directions of a source; ``None`` if there are none that can be read, or none undamaged."""
        with suppress(ArtifactError, KeyError, TypeError, ValueError):
            data = storage.read_bytes(self._fs, self._path(_DIRECTIONS, key))
            units, header = artifact.decode(data, kind="directions")
            if header["sums"] == _sums_of_words(units):
                return Directions(units, tuple(header["digests"]))
        return None

    def put_gaps(self, key: str, gaps: Mapping[str, np.ndarray]) -> None:
        """Keep gaps of signatures to one, by keys that are fit for files' names; an ``ArtifactError`` if it cannot.

        Args:
            key: Of the one.
            gaps: Key of each other side to the gaps of each restart and unit, ``[restarts, units]``, the same for all.
        """
        # One tensor: a thousand by their names would take longer to read than all gaps to a target to compute.
        tables = torch.as_tensor(np.stack([*gaps.values()]))
        data = artifact.encode({"gaps": tables}, {"others": [*gaps]}, kind="gaps")
        storage.write_bytes(self._fs, self._path(_GAPS, key), data)

    def get_gaps(self, key: str) -> dict[str, np.ndarray]:
        """Look for the kept gaps to a signature; empty if there are none that can be read."""
        with suppress(ArtifactError, KeyError, TypeError, ValueError):
            tensors, header = artifact.decode(storage.read_bytes(self._fs, self._path(_GAPS, key)), kind="gaps")
            return dict(zip(header["others"], tensors["gaps"].numpy(), strict=True))
        return {}

    def forget(self, signatures: Collection[str]) -> None:
        """Remove what is kept of signatures of sources, as far as it can be.

        Args:
            signatures: Their SHA-256.
        """
        endings = {signature[:_KEY] for signature in signatures}
        for folder in (_DIRECTIONS, _GAPS) if endings else ():
            with suppress(ArtifactError):
                for file in storage.list_folder(self._fs, f"{self._root}/{folder}"):
                    if file.removesuffix(".safetensors")[-_KEY:] in endings:
                        storage.remove_file(self._fs, f"{self._root}/{folder}/{file}")

    def _path(self, folder: str, key: str) -> str:
        return f"{self._root}/{folder}/{key}.safetensors"


def _sums_of_words(units: Mapping[str, Tensor]) -> dict[str, int]:
    """They tell damage at a twentieth of what SHA-256 costs, which would be more than all the rest of a comparison."""
    return {name: int(unit.numpy().view(np.uint32).sum(dtype=np.uint32)) for name, unit in units.items()}

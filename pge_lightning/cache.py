"""What a library keeps although it could be computed again: signatures of targets, and gaps between sources."""

from collections.abc import Mapping
from contextlib import suppress

from fsspec import AbstractFileSystem
from torch import Tensor

from pge_lightning import artifact
from pge_lightning.errors import ArtifactError
from pge_lightning.signature import Signature

__all__ = ["Cache"]

_TARGETS, _GAPS = ".targets", ".gaps"


class Cache:
    """Files beside the sources that may be removed at any time.

    Args:
        fs: The library's file system.
        root: The library's folder.
    """

    def __init__(self, fs: AbstractFileSystem, root: str) -> None:
        self._fs, self._root = fs, root.rstrip("/")

    def put_target(self, key: str, signature: Signature) -> None:
        """Keep a target's signature under a key that is fit for a file's name; an ``ArtifactError`` if it cannot."""
        artifact.write_bytes(self._fs, self._path(_TARGETS, key), artifact.encode_signature(signature))

    def get_target(self, key: str) -> Signature | None:
        """Look for the kept signature of a target; ``None`` if there is none that can be read."""
        with suppress(ArtifactError):
            return artifact.decode_signature(artifact.read_bytes(self._fs, self._path(_TARGETS, key)))
        return None

    def put_gaps(self, key: str, gaps: Mapping[str, Tensor]) -> None:
        """Keep a signature's gaps to others, by keys that are fit for files' names; an ``ArtifactError`` if it cannot.

        Args:
            key: Of the signature.
            gaps: Key of the other side to the gaps of each restart and unit, ``[restarts, units]``.
        """
        artifact.write_bytes(self._fs, self._path(_GAPS, key), artifact.encode(gaps, {}, kind="gaps"))

    def get_gaps(self, key: str) -> dict[str, Tensor]:
        """Look for the kept gaps of a signature; empty if there are none that can be read."""
        with suppress(ArtifactError):
            return artifact.decode(artifact.read_bytes(self._fs, self._path(_GAPS, key)), kind="gaps")[0]
        return {}

    def _path(self, folder: str, key: str) -> str:
        return f"{self._root}/{folder}/{key}.safetensors"

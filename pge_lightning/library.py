"""A library of sources: signatures, encoder weights and facts of finished trainings, under one path.

Files carry the digest of their content in their names, and ``source.json``, written last, names those that make up
the source. So a source is whole or absent, and replacing it touches no file of the old one before the new one stands.
"""

import os
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any
from uuid import uuid4

from fsspec.core import url_to_fs
from torch import Tensor

from pge_lightning import artifact, storage
from pge_lightning.cache import Cache
from pge_lightning.errors import ArtifactError, PGEError
from pge_lightning.probe import is_name
from pge_lightning.record import Record
from pge_lightning.records import RecordFolder, Records
from pge_lightning.signature import Signature
from pge_lightning.source import (
    COMMIT,
    FILE,
    Source,
    SourceFacts,
    SourceFolder,
    decode_file,
    digest_of,
    file_entry,
    from_json,
    to_json,
)

__all__ = ["Library"]

_TEMPORARY = re.compile(r"\.[0-9a-f]{32}\.tmp")
_RECORDS = ".records"


class Library:
    """Sources under one path, local or of any fsspec URL.

    Processes may work on different sources at the same time. Where two register the same name, the later one stands.

    Args:
        root: Folder or URL; need not exist yet.
        storage_options: Options of the fsspec file system (credentials, end point).

    Attributes:
        root: The folder.
        cache: What is kept beside the sources although it could be computed again.

    Example:
        >>> import torch
        >>> library = Library("memory://example")
        >>> facts = SourceFacts("encoder", 10, 60000, "accuracy", 0.99, 12.0, 3.0, "2025-01-01T00:00:00+00:00")
        >>> source = library.register("mnist", {"encoder.weight": torch.ones(2)}, facts, signatures=[])
        >>> library.names()
        ['mnist']
        >>> library.open("mnist").load_weights()
        {'encoder.weight': tensor([1., 1.])}
        >>> library.remove("mnist")
    """

    def __init__(self, root: str | os.PathLike[str], storage_options: Mapping[str, Any] | None = None) -> None:
        self._fs, path = url_to_fs(os.fspath(root), **dict(storage_options or {}))
        self.root: str = path.rstrip("/") or "/"
        self.cache = Cache(self._fs, self.root)
        self._records = RecordFolder(self._fs, f"{self.root.rstrip('/')}/{_RECORDS}")

    def check_writable(self) -> None:
        """Write and remove a small file, so that a run learns before its work whether it can store the result.

        An ``ArtifactError`` tells what stands in the way.
        """
        path = f"{self.root.rstrip('/')}/.{uuid4().hex}.tmp"
        storage.write_bytes(self._fs, path, b"writable")
        storage.remove_file(self._fs, path)

    def check_name(self, name: str, overwrite: bool = False) -> None:
        """Refuse a name under which nothing can be registered; a ``ValueError`` if it is malformed.

        Args:
            name: Name of a source: letters, digits, ``-``, ``_`` and ``.``, not starting with ``.``.
            overwrite: Whether a source of this name may be replaced.

        Raises:
            PGEError: If there is such a source and it may not be replaced.
        """
        if self._folder(name).exists() and not overwrite:
            raise PGEError(
                f"Expected a new source name, but '{name}' is registered already. Choose another name, pass "
                "`overwrite=True` (`library.overwrite=true` in the shell), or remove the source first."
            )

    def names(self) -> list[str]:
        """List the finished sources, damaged ones included; an ``ArtifactError`` if the library cannot be read.

        Returns:
            Their names, sorted; none where the library does not exist yet.
        """
        names = storage.list_folder(self._fs, self.root)
        return [name for name in names if is_name(name) and self._folder(name).exists()]

    def put_signature(self, name: str, signature: Signature) -> str:
        """Store a signature for a source that is to be registered later.

        Args:
            name: Name of the source.
            signature: The signature.

        Returns:
            The name of its file, for :meth:`register`.
        """
        return self._folder(name).write(_stem(signature), artifact.encode_signature(signature)).file

    def drop_signature(self, name: str, signature: Signature) -> None:
        """Remove what :meth:`put_signature` may have stored, unless a registered source refers to it.

        Args:
            name: Name of the source.
            signature: The signature.
        """
        self._drop(name, file_entry(_stem(signature), artifact.encode_signature(signature)).file)

    def put_extra(self, name: str, kind: str, tensors: Mapping[str, Tensor]) -> str:
        """Store tensors that not every source has for a source that is to be registered later.

        Args:
            name: Name of the source.
            kind: What they are, such as ``"summary"``; fit for a file's name.
            tensors: Name to tensor.

        Returns:
            The name of their file, for :meth:`register`.
        """
        return self._folder(name).write(kind, artifact.encode(tensors, {}, kind=kind)).file

    def drop_extra(self, name: str, kind: str, tensors: Mapping[str, Tensor]) -> None:
        """Remove what :meth:`put_extra` may have stored, unless a registered source refers to it."""
        self._drop(name, file_entry(kind, artifact.encode(tensors, {}, kind=kind)).file)

    def get_signature(self, name: str, file: str) -> Signature:
        """Read a signature by its file, whether its source is registered yet or not.

        Args:
            name: Name of the source.
            file: What :meth:`put_signature` returned.

        Returns:
            The signature; an ``ArtifactError`` tells if it is missing or damaged.
        """
        return self._folder(name).load(file, digest_of(file), artifact.decode_signature)

    def add_record(self, record: Record) -> None:
        """Keep what came of a fine-tuning; a record that is there already is not kept twice."""
        self._records.write([record])

    def records(self) -> Records:
        """Read what came of fine-tunings, the oldest first; a damaged record is left out with a warning."""
        return self._records.read()

    def import_records(self, path: str | os.PathLike[str]) -> int:
        """Keep the records of a table (:meth:`Records.from_csv`), all or none, and tell how many are new."""
        return self._records.write(Records.from_csv(path))

    def register(
        self,
        name: str,
        weights: Mapping[str, Tensor],
        facts: SourceFacts,
        signatures: Sequence[str],
        overwrite: bool = False,
        extras: Mapping[str, str] | None = None,
    ) -> Source:
        """Make a source of encoder weights, facts and signatures that are stored already.

        A ``PGEError`` refuses a name that is taken; an ``ArtifactError`` tells of a signature that is missing or
        damaged, or of a library that cannot be written. What was registered before is then unchanged.

        Args:
            name: Name of the source.
            weights: Parameters and buffers of the encoder by their names inside the user's module.
            facts: What is known of the source.
            signatures: What :meth:`put_signature` returned, once per signature.
            overwrite: Whether a source of this name may be replaced.
            extras: Kind to what :meth:`put_extra` returned.

        Returns:
            The source.
        """
        self.check_name(name, overwrite)
        folder = self._folder(name)
        entries = tuple(folder.entry(file) for file in signatures)
        held = {kind: folder.extra_entry(kind, file) for kind, file in (extras or {}).items()}
        weights_file = folder.write("encoder", artifact.encode(weights, {}, kind="encoder"))
        source = Source(name, facts, weights_file, entries, folder, held)
        replaced = self._held(name)
        storage.write_bytes(self._fs, f"{folder.path}/{COMMIT}", to_json(source))
        # Only what the old source referred to: other files may belong to a run that is still training.
        for file in _files_of(replaced) - _files_of(source):
            with suppress(ArtifactError):  # the new source stands, a file left over does no harm
                storage.remove_file(self._fs, f"{folder.path}/{file}")
        self.cache.forget(_digests_of(replaced) - _digests_of(source))
        return source

    def open(self, name: str) -> Source:
        """Open a source without reading its tensors.

        Args:
            name: Its name.

        Returns:
            The source.

        Raises:
            ArtifactError: If ``source.json`` cannot be read, is damaged or too new.
            PGEError: If there is no source of this name.
        """
        folder = self._folder(name)
        path = f"{folder.path}/{COMMIT}"
        try:
            data = storage.read_bytes(self._fs, path)
        except ArtifactError as error:
            if folder.exists():
                raise
            raise PGEError(
                f"Expected one of the sources {self.names()}, but got '{name}'. Check the name and the library's path."
            ) from error
        return decode_file(path, data, lambda data: from_json(data, name, folder))

    def verify(self, name: str) -> None:
        """Read every file of a source, check its SHA-256, decode it, and compare it with what is said of it.

        Args:
            name: Name of the source.

        Raises:
            ArtifactError: If anything is missing or damaged.
        """
        source = self.open(name)
        source.load_weights()
        for kind in source.extras:
            source.load_extra(kind)
        for entry in source.signatures:
            if self._folder(name).entry(entry.file) != entry:
                raise ArtifactError(
                    f"Expected '{entry.file}' of source '{name}' to be as {COMMIT} says, but it is another signature. "
                    "Register the source again with `overwrite=True`."
                )

    def remove(self, name: str) -> None:
        """Remove a source, or what a run that was cut off left under its name; files of other origin stay.

        Args:
            name: Its name.
        """
        folder, known = self._folder(name), _digests_of(self._held(name))
        storage.remove_file(self._fs, f"{folder.path}/{COMMIT}")
        for file in storage.list_folder(self._fs, folder.path):
            if FILE.fullmatch(file) or _TEMPORARY.fullmatch(file):
                storage.remove_file(self._fs, f"{folder.path}/{file}")
        self._remove_if_empty(name)
        self.cache.forget(known)

    def _remove_if_empty(self, name: str) -> None:
        with suppress(OSError):
            self._fs.rmdir(self._folder(name).path)

    def _folder(self, name: str) -> SourceFolder:
        if not is_name(name):
            raise ValueError(
                f"Expected a source name of letters, digits, '-', '_' and '.', not starting with '.', but got {name!r}."
            )
        return SourceFolder(self._fs, f"{self.root.rstrip('/')}/{name}")

    def _held(self, name: str) -> Source | None:
        with suppress(PGEError):
            return self.open(name)
        return None

    def _drop(self, name: str, file: str) -> None:
        if file not in _files_of(self._held(name)):
            storage.remove_file(self._fs, f"{self._folder(name).path}/{file}")
            self._remove_if_empty(name)


def _files_of(source: Source | None) -> set[str]:
    if source is None:
        return set()
    held = (entry.file for entry in source.extras.values())
    return {source.weights_file.file, *(entry.file for entry in source.signatures), *held}


def _digests_of(source: Source | None) -> set[str]:
    return set() if source is None else {entry.sha256 for entry in source.signatures}


def _stem(signature: Signature) -> str:
    return f"{signature.probe.name}-{signature.budget}"

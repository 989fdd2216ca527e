"""A library of sources: signatures, encoder weights and facts of finished trainings, under one path.

Files carry the digest of their content in their names, and ``source.json``, written last, names those that make up
the source. So a source is whole or absent, and replacing it touches no file of the old one before the new one stands.
"""

import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from typing import Any, TypeVar
from uuid import uuid4

from fsspec import AbstractFileSystem
from fsspec.core import url_to_fs
from torch import Tensor

from pge_lightning import artifact
from pge_lightning.errors import ArtifactError, PGEError
from pge_lightning.signature import Signature

__all__ = ["FileEntry", "Library", "SignatureEntry", "Source", "SourceFacts"]

_COMMIT = "source.json"
_FILE = re.compile(r"[^/\\]+-([0-9a-f]{12})\.safetensors")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_TEMPORARY = re.compile(r"\.[0-9a-f]{32}\.tmp")

T = TypeVar("T")


@dataclass(frozen=True)
class SourceFacts:
    """What is known of a source beside its tensors.

    Args:
        encoder: How the encoder was named.
        classes: Number of classes; ``None`` where there are none.
        samples: Number of training samples.
        metric: Name of the validation metric, if there was one.
        value: Its last value.
        seconds_training: Wall-clock time of the training.
        seconds_collecting: Wall-clock time of collecting the signatures.
        created: When the source was registered, UTC, ISO 8601.
        extra: Anything else, in JSON types.

    Raises:
        ValueError: If a value has no JSON form.
    """

    encoder: str
    classes: int | None
    samples: int
    metric: str | None
    value: float | None
    seconds_training: float
    seconds_collecting: float
    created: str
    extra: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        try:
            plain = json.loads(json.dumps(asdict(self)))
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"Expected facts in JSON types, but got: {error}. Convert them to plain values."
            ) from error
        object.__setattr__(self, "extra", plain["extra"])


@dataclass(frozen=True)
class FileEntry:
    """A file of a source: its name in the source's folder and the SHA-256 of its content."""

    file: str
    sha256: str


@dataclass(frozen=True)
class SignatureEntry:
    """A stored signature, described well enough to be chosen without reading its tensors.

    Args:
        file: Its name in the source's folder.
        sha256: SHA-256 of its content.
        probe: Name of its probe.
        recipe: Recipe of its probe.
        budget: Rung of the ladder; ``None`` for a probe without budgets.
    """

    file: str
    sha256: str
    probe: str
    recipe: dict[str, Any]
    budget: int | None


@dataclass(frozen=True)
class _Folder:
    """The folder of one source."""

    fs: AbstractFileSystem
    path: str

    def exists(self) -> bool:
        return _COMMIT in artifact.list_folder(self.fs, self.path)

    def load(self, file: str, digest: str, decoder: Callable[[bytes], T]) -> T:
        path = f"{self.path}/{file}"
        data = artifact.read_bytes(self.fs, path)
        if not sha256(data).hexdigest().startswith(digest):
            raise ArtifactError(
                f"Expected '{path}' to have the SHA-256 {digest[:12]}..., but its content differs: damaged. "
                "Restore the file, or register the source again with `overwrite=True`."
            )
        return _decode(path, data, decoder)

    def write(self, stem: str, data: bytes) -> FileEntry:
        digest = sha256(data).hexdigest()
        entry = FileEntry(f"{stem}-{digest[:12]}.safetensors", digest)
        artifact.write_bytes(self.fs, f"{self.path}/{entry.file}", data)
        return entry

    def entry(self, file: str) -> SignatureEntry:
        def describe(data: bytes) -> SignatureEntry:
            signature = artifact.decode_signature(data)
            probe, budget = signature.probe, signature.fingerprint["budget"]
            return SignatureEntry(file, sha256(data).hexdigest(), probe.name, probe.recipe, budget)

        return self.load(file, _digest(file), describe)


@dataclass(frozen=True)
class Source:
    """A registered source; tensors are read only when asked for.

    Args:
        name: Its name in the library.
        facts: What is known of it.
        weights_file: The file of the encoder's weights.
        signatures: Its signatures.
    """

    name: str
    facts: SourceFacts
    weights_file: FileEntry
    signatures: tuple[SignatureEntry, ...]
    _folder: _Folder = field(repr=False, compare=False)

    def find(self, recipe: Mapping[str, Any], budget: int | None) -> SignatureEntry | None:
        """Find the signature of a probe.

        Args:
            recipe: ``Probe.recipe``.
            budget: Rung of the ladder; ``None`` for a probe without budgets.

        Returns:
            The entry, or ``None`` if the source has no such signature.
        """
        return next((entry for entry in self.signatures if entry.recipe == recipe and entry.budget == budget), None)

    def load_signature(self, entry: SignatureEntry) -> Signature:
        """Read one of the signatures; an ``ArtifactError`` tells if its file is missing or damaged.

        Args:
            entry: One of ``signatures``.

        Returns:
            The signature, its tensors on the CPU.
        """
        return self._folder.load(entry.file, entry.sha256, artifact.decode_signature)

    def load_weights(self) -> dict[str, Tensor]:
        """Read the encoder's weights; an ``ArtifactError`` tells if their file is missing or damaged.

        Returns:
            Parameters and buffers by their names inside the user's module, on the CPU.
        """
        stored = self.weights_file
        return self._folder.load(stored.file, stored.sha256, lambda data: artifact.decode(data, kind="encoder")[0])


class Library:
    """Sources under one path, local or of any fsspec URL.

    Processes may work on different sources at the same time. Where two register the same name, the later one stands.

    Args:
        root: Folder or URL; need not exist yet.
        storage_options: Options of the fsspec file system (credentials, end point).

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

    def check_writable(self) -> None:
        """Write and remove a small file, so that a run learns before its work whether it can store the result.

        An ``ArtifactError`` tells what stands in the way.
        """
        path = f"{self.root.rstrip('/')}/.{uuid4().hex}.tmp"
        artifact.write_bytes(self._fs, path, b"writable")
        artifact.remove_file(self._fs, path)

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
                "`overwrite=True`, or remove the source first."
            )

    def names(self) -> list[str]:
        """List the finished sources, damaged ones included; an ``ArtifactError`` if the library cannot be read.

        Returns:
            Their names, sorted; none where the library does not exist yet.
        """
        names = artifact.list_folder(self._fs, self.root)
        return [name for name in names if _is_name(name) and self._folder(name).exists()]

    def put_signature(self, name: str, signature: Signature) -> str:
        """Store a signature for a source that is to be registered later.

        Args:
            name: Name of the source.
            signature: The signature.

        Returns:
            The name of its file, for :meth:`register`.
        """
        stem = f"{signature.probe.name}-{signature.budget}"
        return self._folder(name).write(stem, artifact.encode_signature(signature)).file

    def get_signature(self, name: str, file: str) -> Signature:
        """Read a signature by its file, whether its source is registered yet or not.

        Args:
            name: Name of the source.
            file: What :meth:`put_signature` returned.

        Returns:
            The signature; an ``ArtifactError`` tells if it is missing or damaged.
        """
        return self._folder(name).load(file, _digest(file), artifact.decode_signature)

    def register(
        self,
        name: str,
        weights: Mapping[str, Tensor],
        facts: SourceFacts,
        signatures: Sequence[str],
        overwrite: bool = False,
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

        Returns:
            The source.
        """
        self.check_name(name, overwrite)
        folder = self._folder(name)
        entries = tuple(folder.entry(file) for file in signatures)
        weights_file = folder.write("encoder", artifact.encode(weights, {}, kind="encoder"))
        source = Source(name, facts, weights_file, entries, folder)
        replaced = self._files(name)
        artifact.write_bytes(self._fs, f"{folder.path}/{_COMMIT}", _to_json(source))
        # Only what the old source referred to: other files may belong to a run that is still training.
        for file in replaced - {weights_file.file, *signatures}:
            with suppress(ArtifactError):  # the new source stands, a file left over does no harm
                artifact.remove_file(self._fs, f"{folder.path}/{file}")
        return source

    def open(self, name: str) -> Source:
        """Open a source without reading its tensors; an ``ArtifactError`` if ``source.json`` is damaged or too new.

        Args:
            name: Its name.

        Returns:
            The source.

        Raises:
            PGEError: If there is no source of this name.
        """
        folder = self._folder(name)
        if not folder.exists():
            raise PGEError(
                f"Expected one of the sources {self.names()}, but got '{name}'. Check the name and the library's path."
            )
        path = f"{folder.path}/{_COMMIT}"
        return _decode(path, artifact.read_bytes(self._fs, path), lambda data: _from_json(data, name, folder))

    def verify(self, name: str) -> None:
        """Read every file of a source, check its SHA-256, decode it, and compare it with what is said of it.

        Args:
            name: Name of the source.

        Raises:
            ArtifactError: If anything is missing or damaged.
        """
        source = self.open(name)
        source.load_weights()
        for entry in source.signatures:
            if self._folder(name).entry(entry.file) != entry:
                raise ArtifactError(
                    f"Expected '{entry.file}' of source '{name}' to be as {_COMMIT} says, but it is another signature. "
                    "Register the source again with `overwrite=True`."
                )

    def remove(self, name: str) -> None:
        """Remove a source, or what a run that was cut off left under its name; files of other origin stay.

        Args:
            name: Its name.
        """
        folder = self._folder(name)
        artifact.remove_file(self._fs, f"{folder.path}/{_COMMIT}")
        for file in artifact.list_folder(self._fs, folder.path):
            if _FILE.fullmatch(file) or _TEMPORARY.fullmatch(file):
                artifact.remove_file(self._fs, f"{folder.path}/{file}")
        with suppress(OSError):
            self._fs.rmdir(folder.path)

    def _folder(self, name: str) -> _Folder:
        if not _is_name(name):
            raise ValueError(
                f"Expected a source name of letters, digits, '-', '_' and '.', not starting with '.', but got {name!r}."
            )
        return _Folder(self._fs, f"{self.root.rstrip('/')}/{name}")

    def _files(self, name: str) -> set[str]:
        with suppress(PGEError):
            source = self.open(name)
            return {source.weights_file.file, *(entry.file for entry in source.signatures)}
        return set()


def _is_name(name: str) -> bool:
    return bool(name) and all(c.isalnum() or c in "-_." for c in name) and not name.startswith(".")


def _digest(file: str) -> str:
    match = _FILE.fullmatch(file)
    if match is None:
        raise ArtifactError(
            f"Expected the name of a library's file, but got {file!r}. Pass what `put_signature` returned."
        )
    return match[1]


def _decode(path: str, data: bytes, decoder: Callable[[bytes], T]) -> T:
    try:
        return decoder(data)
    except ArtifactError as error:
        raise ArtifactError(f"'{path}': {error}") from error


def _to_json(source: Source) -> bytes:
    content = {
        "schema": artifact.SCHEMA,
        "kind": "source",
        "name": source.name,
        "facts": asdict(source.facts),
        "weights": asdict(source.weights_file),
        "signatures": [asdict(entry) for entry in source.signatures],
    }
    return json.dumps(content, indent=2).encode()


def _from_json(data: bytes, name: str, folder: _Folder) -> Source:
    try:
        content = artifact.check_header(json.loads(data), kind="source")
        weights_file = FileEntry(**content["weights"])
        entries = tuple(SignatureEntry(**fields) for fields in content["signatures"])
        stored: list[FileEntry | SignatureEntry] = [weights_file, *entries]
        for entry in stored:
            if not _SHA256.fullmatch(entry.sha256) or not entry.sha256.startswith(_digest(entry.file)):
                raise ValueError(f"digest of {entry.file}")
        return Source(name, SourceFacts(**content["facts"]), weights_file, entries, folder)
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise ArtifactError(
            f"Expected the facts and files of a source, but got damaged ones ({error!r}). "
            "Restore the file, or register the source again with `overwrite=True`."
        ) from error

"""A source: what a library holds of one finished training, and the folder it lies in."""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from typing import Any, TypeVar

from fsspec import AbstractFileSystem
from torch import Tensor

from pge_lightning import artifact, storage
from pge_lightning.errors import ArtifactError
from pge_lightning.signature import Signature

__all__ = ["COMMIT", "FILE", "FileEntry", "SignatureEntry", "Source", "SourceFacts", "SourceFolder"]

COMMIT = "source.json"
FILE = re.compile(r"[^/\\]+-([0-9a-f]{12})\.safetensors")
_SHA256 = re.compile(r"[0-9a-f]{64}")

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
class SourceFolder:
    """The folder of one source."""

    fs: AbstractFileSystem
    path: str

    def exists(self) -> bool:
        """Whether a finished source lies here."""
        return COMMIT in storage.list_folder(self.fs, self.path)

    def load(self, file: str, digest: str, decoder: Callable[[bytes], T]) -> T:
        """Read a file whose SHA-256 begins with the digest.

        Returns:
            What the decoder makes of it.

        Raises:
            ArtifactError: If it is missing or damaged.
        """
        path = f"{self.path}/{file}"
        data = storage.read_bytes(self.fs, path)
        if not sha256(data).hexdigest().startswith(digest):
            raise ArtifactError(
                f"Expected '{path}' to have the SHA-256 {digest[:12]}..., but its content differs: damaged. "
                "Restore the file, or register the source again with `overwrite=True`."
            )
        return decode_file(path, data, decoder)

    def write(self, stem: str, data: bytes) -> FileEntry:
        """Store a file under a name that ends with its digest.

        Returns:
            Its entry.
        """
        entry = file_entry(stem, data)
        storage.write_bytes(self.fs, f"{self.path}/{entry.file}", data)
        return entry

    def entry(self, file: str) -> SignatureEntry:
        """Describe a stored signature.

        Returns:
            Its entry.
        """

        def describe(data: bytes) -> SignatureEntry:
            signature = artifact.decode_signature(data)
            probe, budget = signature.probe, signature.fingerprint["budget"]
            return SignatureEntry(file, sha256(data).hexdigest(), probe.name, probe.recipe, budget)

        return self.load(file, digest_of(file), describe)

    def extra_entry(self, kind: str, file: str) -> FileEntry:
        """Describe stored tensors of a kind.

        Returns:
            Their entry.
        """

        def describe(data: bytes) -> FileEntry:
            artifact.decode(data, kind=kind)
            return FileEntry(file, sha256(data).hexdigest())

        return self.load(file, digest_of(file), describe)

    def tensors(self, kind: str, stored: FileEntry) -> dict[str, Tensor]:
        """Read tensors of a kind; an ``ArtifactError`` tells if their file is missing or damaged.

        Returns:
            Name to tensor, on the CPU.
        """
        return self.load(stored.file, stored.sha256, lambda data: artifact.decode(data, kind=kind)[0])


@dataclass(frozen=True)
class Source:
    """A registered source; tensors are read only when asked for.

    Args:
        name: Its name in the library.
        facts: What is known of it.
        weights_file: The file of the encoder's weights.
        signatures: Its signatures.
        extras: Kind of tensors that not every source has, such as ``"summary"``, to their file.
    """

    name: str
    facts: SourceFacts
    weights_file: FileEntry
    signatures: tuple[SignatureEntry, ...]
    _folder: SourceFolder = field(repr=False, compare=False)
    extras: Mapping[str, FileEntry] = field(default_factory=dict)

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

    def load_shapes(self, entry: SignatureEntry) -> dict[str, list[int]]:
        """Read the shapes of a signature's units alone; an ``ArtifactError`` tells if its file is missing or foreign.

        The values are neither read nor checked: the file may still be damaged.

        Args:
            entry: One of ``signatures``.

        Returns:
            Unit to its shape, without restarts.
        """
        path = f"{self._folder.path}/{entry.file}"
        data = artifact.read_beginning(self._folder.fs, path)
        shapes = decode_file(path, data, lambda data: artifact.decode_shapes(data, "signature"))
        return {name: shape[1:] for name, shape in shapes.items()}

    def load_weights(self) -> dict[str, Tensor]:
        """Read the encoder's weights; an ``ArtifactError`` tells if their file is missing or damaged.

        Returns:
            Parameters and buffers by their names inside the user's module, on the CPU.
        """
        return self._folder.tensors("encoder", self.weights_file)

    def load_extra(self, kind: str) -> dict[str, Tensor] | None:
        """Read tensors that not every source has; an ``ArtifactError`` tells if their file is missing or damaged.

        Args:
            kind: What they are, such as ``"summary"``.

        Returns:
            Name to tensor, on the CPU; ``None`` if the source has none of this kind.
        """
        return self._folder.tensors(kind, self.extras[kind]) if kind in self.extras else None


def file_entry(stem: str, data: bytes) -> FileEntry:
    digest = sha256(data).hexdigest()
    return FileEntry(f"{stem}-{digest[:12]}.safetensors", digest)


def digest_of(file: str) -> str:
    match = FILE.fullmatch(file)
    if match is None:
        raise ArtifactError(
            f"Expected the name of a library's file, but got {file!r}. Pass what `put_signature` returned."
        )
    return match[1]


def decode_file(path: str, data: bytes, decoder: Callable[[bytes], T]) -> T:
    try:
        return decoder(data)
    except ArtifactError as error:
        raise ArtifactError(f"'{path}': {error}") from error


def to_json(source: Source) -> bytes:
    content = {
        "schema": artifact.SCHEMA,
        "kind": "source",
        "name": source.name,
        "facts": asdict(source.facts),
        "weights": asdict(source.weights_file),
        "signatures": [asdict(entry) for entry in source.signatures],
    }
    if source.extras:
        content["extras"] = {kind: asdict(entry) for kind, entry in source.extras.items()}
    return json.dumps(content, indent=2).encode()


def from_json(data: bytes, name: str, folder: SourceFolder) -> Source:
    try:
        content = artifact.check_header(json.loads(data), kind="source")
        weights_file = FileEntry(**content["weights"])
        entries = tuple(SignatureEntry(**fields) for fields in content["signatures"])
        extras = {kind: FileEntry(**fields) for kind, fields in content.get("extras", {}).items()}
        stored: list[FileEntry | SignatureEntry] = [weights_file, *entries, *extras.values()]
        for entry in stored:
            if not _SHA256.fullmatch(entry.sha256) or not entry.sha256.startswith(digest_of(entry.file)):
                raise ValueError(f"digest of {entry.file}")
        return Source(name, SourceFacts(**content["facts"]), weights_file, entries, folder, extras)
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise ArtifactError(
            f"Expected the facts and files of a source, but got damaged ones ({error!r}). "
            "Restore the file, or register the source again with `overwrite=True`."
        ) from error

"""Short utterances and what their speaker wants."""

import gzip
import json
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from pge_lightning.data.arrays import ArrayDataModule, Arrays
from pge_lightning.data.files import find_file
from pge_lightning.data.subsets import shuffled

__all__ = ["TextIntent", "hash_tokens"]

WORD = re.compile(r"\w+")
ORDER_SEED = 0


class TextIntent(ArrayDataModule):
    """One data set of utterances as token numbers, int64 ``[length]``, from ``<root>/text_intent/<name>.jsonl.gz``.

    Each line is a JSON object with ``split`` (``train`` or ``test``), ``text`` and ``label`` (a class number).
    The training split is brought into a fixed random order.

    Args:
        name: Name of the data set: its file without the suffix.
        root: Folder that holds ``text_intent``.
        vocabulary: Number of token numbers, that of padding included.
        length: Tokens per utterance; longer ones are cut, shorter ones padded with 0.
        **options: See ``ArrayDataModule``.

    Raises:
        FileNotFoundError: If folder or file is missing (at ``setup``); the message lists the names that are there.
        ValueError: If ``vocabulary`` is below 2 or ``length`` below 1, or the file is damaged (at ``setup``).
    """

    name: str

    def __init__(self, name: str, root: str, vocabulary: int = 4096, length: int = 24, **options: Any) -> None:
        super().__init__(**options)
        if vocabulary < 2 or length < 1:
            raise ValueError(
                f"Expected `vocabulary` of at least 2 and `length` of at least 1, but got {vocabulary} and {length}."
            )
        self.name = name
        self.root = root
        self.vocabulary = vocabulary
        self.length = length

    @override
    def load_arrays(self) -> Arrays:
        path = find_file(self.root, "text_intent", self.name, ".jsonl.gz")
        tokens: dict[str, list[Tensor]] = {"train": [], "test": []}
        labels: dict[str, list[int]] = {"train": [], "test": []}
        for split, text, label in _utterances(path):
            tokens[split].append(hash_tokens(text, self.vocabulary, self.length))
            labels[split].append(label)
        if not all(tokens.values()):
            raise ValueError(f"Expected '{path}' to hold a train and a test split, but one is empty.")
        # Such files often come class by class, which would make parts of the split different problems.
        order = shuffled(len(labels["train"]), ORDER_SEED)
        return Arrays(
            train_x=torch.stack(tokens["train"])[order],
            train_y=torch.tensor(labels["train"])[order],
            test_x=torch.stack(tokens["test"]),
            test_y=torch.tensor(labels["test"]),
            num_classes=max(labels["train"] + labels["test"]) + 1,
        )


def hash_tokens(text: str, vocabulary: int, length: int) -> Tensor:
    """Number the words of a text by a hash that is the same on every machine (CRC-32).

    Args:
        text: Any text; case does not matter, punctuation is dropped.
        vocabulary: Words get numbers from 1 to ``vocabulary - 1``; two words may share one.
        length: Number of words to keep.

    Returns:
        int64 ``[length]``, padded with 0.

    Example:
        >>> hash_tokens("Where is my card?", vocabulary=100, length=6).tolist()
        [96, 90, 84, 1, 0, 0]
    """
    words = WORD.findall(text.casefold())[:length]
    numbers = [1 + zlib.crc32(word.encode()) % (vocabulary - 1) for word in words]
    return torch.tensor(numbers + [0] * (length - len(numbers)))


def _utterances(path: Path) -> Iterator[tuple[str, str, int]]:
    try:
        with gzip.open(path, "rt", encoding="utf-8") as lines:
            for line in lines:
                record = json.loads(line)
                if record["split"] not in ("train", "test"):
                    raise ValueError(f"split {record['split']!r}")
                yield record["split"], str(record["text"]), int(record["label"])
    except (OSError, EOFError, zlib.error, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"Expected '{path}' to hold JSON lines with split (train or test), text and label, but got: {error!r}. "
            "Replace the file."
        ) from error

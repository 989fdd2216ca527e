"""Find and read files of a data folder, with errors that name the cure."""

import zipfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

__all__ = ["find_file", "read_npz"]

FIELDS = ("train_x", "train_y", "test_x", "test_y", "classes")


def find_file(root: str, family: str, name: str, suffix: str) -> Path:
    """The file of one data set.

    Args:
        root: Folder that holds the families.
        family: Sub-folder of data sets of one kind.
        name: Name of the data set: its file without the suffix.
        suffix: How the family's files end.

    Returns:
        Path of the file.

    Raises:
        FileNotFoundError: If folder or file is missing; the message lists the names that are there.
    """
    folder = Path(root).expanduser() / family
    if not folder.is_dir():
        raise FileNotFoundError(
            f"Expected a folder '{family}' with data in '{root}', but there is none. "
            f"Set `data.root` to the folder that holds '{family}'."
        )
    there = sorted(path.name.removesuffix(suffix) for path in folder.glob(f"*{suffix}"))
    if name not in there:
        raise FileNotFoundError(
            f"Expected the name of a data set in '{folder}', but got {name!r}. "
            f"There are: {', '.join(there) or 'none'}. Correct the name, or set `data.root` to another folder."
        )
    return folder / f"{name}{suffix}"


def read_npz(path: Path) -> dict[str, NDArray[np.generic]]:
    """Read the arrays of one data set; objects are never unpickled.

    Args:
        path: An ``.npz`` file with ``train_x``, ``train_y``, ``test_x``, ``test_y`` and ``classes``.

    Returns:
        Field to array.

    Raises:
        ValueError: If the file is damaged or lacks a field.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {field: archive[field] for field in FIELDS}
    except (zipfile.BadZipFile, EOFError, KeyError, OSError, ValueError, AttributeError, TypeError) as error:
        raise ValueError(
            f"Expected '{path}' to hold the arrays {', '.join(FIELDS)}, but got: {error}. Replace the file."
        ) from error

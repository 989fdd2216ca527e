"""Undo: a last word that an interruption cannot cut short."""

from collections.abc import Callable, Generator
from contextlib import contextmanager

__all__ = ["undone"]


@contextmanager
def undone(undo: Callable[[], None]) -> Generator[None]:
    """Undo something on leaving, even if an interruption breaks off the undoing itself.

    Args:
        undo: Puts something back; doing it twice must be as good as once.

    Yields:
        Nothing.
    """
    try:
        try:
            yield
        finally:
            undo()
    finally:  # Ctrl-C may have come in the middle of the first one
        undo()

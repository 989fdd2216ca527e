"""What can go wrong, by who has to mend it."""

__all__ = ["ArtifactError", "IncomparableError", "PGEError", "SilentError"]


class PGEError(RuntimeError):
    """The work asked for cannot be done; the message says what was expected, what came, and the cure."""


class IncomparableError(PGEError):
    """Two signatures were not made by the same probe from the same starts, so that a gap would mean nothing."""


class SilentError(PGEError):
    """An estimator has nothing to say, for want of what it goes by; that is no fault of the source."""


class ArtifactError(PGEError):
    """A stored file is missing, damaged, foreign, or written by a newer version."""

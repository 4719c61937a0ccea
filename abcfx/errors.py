"""The errors that abcfx raises on purpose.

Each message says what is wrong and where, what was expected and what was given, and the line that fixes it.
"""

from __future__ import annotations

from collections.abc import Hashable


class AbcfxError(Exception):
    """The base class of every error that abcfx raises on purpose."""


class InvalidInputError(AbcfxError, ValueError):
    """The error that an argument is malformed: a wrong length, a NaN, a name pattern that matches nothing."""


class InfeasibleError(AbcfxError):
    """The error that no exponents satisfy the constraints; the message has the smallest set of constraints in conflict.

    Attributes:
        conflict: names of the rows and bounds of the linear program that are in that set.
    """

    def __init__(self, message: str, conflict: tuple[Hashable, ...] = ()) -> None:
        """Store the message and, as `conflict`, the names of the constraints that cannot hold together."""
        super().__init__(message)
        self.conflict = conflict


class UnknownOpError(AbcfxError):
    """The error that an op in the traced graph has no rule, which would say how large its result is."""


class CaptureError(AbcfxError):
    """The error that a model cannot be turned into a graph.

    Attributes:
        line: the line of the model's source that is the cause, as "path/file.py:12: text"; "" when it is not known.
    """

    def __init__(self, message: str, line: str = "") -> None:
        """Store the message and, as `line`, the line of the model's source that is the cause."""
        super().__init__(message)
        self.line = line


class LeftBehindError(AbcfxError, AttributeError):
    """The error that a method or attribute of the model's own class is asked of the module that its graph became."""


class UncapturableError(CaptureError):
    """Raised when no way of capturing can keep what a model's forward does, such as a random draw in Python."""


class PairingError(AbcfxError):
    """The error that two models, target and base (the same at a smaller width), are not of one architecture."""


class GrowthError(AbcfxError):
    """The error that a larger model was not filled from a trained smaller one so that both compute the same."""


class CheckFailedError(AbcfxError):
    """The error that a check has failed, raised by `raise_if_failed()`; the message has the rows that fail."""

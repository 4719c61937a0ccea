"""The errors a user can meet; each message says what, where, expected against got, and the line that fixes it."""

from __future__ import annotations

from collections.abc import Hashable


class AbcfxError(Exception):
    """Base class of every error that abcfx raises on purpose."""


class InvalidInputError(AbcfxError, ValueError):
    """An argument is malformed: wrong length, NaN, a pattern that matched nothing, a + b off, a cycle."""


class InfeasibleError(AbcfxError):
    """No exponents satisfy the constraints; the message tells the smallest set of them that is in conflict.

    `conflict` holds the names of that set: rows and bounds of the linear program.
    """

    def __init__(self, message: str, conflict: tuple[Hashable, ...] = ()) -> None:
        super().__init__(message)
        self.conflict = conflict


class UnknownOpError(AbcfxError):
    """An op in the traced graph has no rule."""


class CaptureError(AbcfxError):
    """The model could not be turned into a graph."""


class PairingError(AbcfxError):
    """The graphs of the base and the target model are not instances of one architecture."""


class GrowthError(AbcfxError):
    """A larger model cannot be filled so that it computes what the smaller one does, or was not."""


class CheckFailedError(AbcfxError):
    """A check failed and was asked to raise; the message has the rows that fail."""

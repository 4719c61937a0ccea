"""Checks on a user's own model: the coordinate check."""

from abcfx.checks.coord import coord_check
from abcfx.checks.coord_result import CoordCheck

__all__ = ["CoordCheck", "coord_check"]

"""Scales, init and learning rates that hold at any width, for any PyTorch model: a compiler pass and an LP."""

from typing import TYPE_CHECKING, Any

from abcfx import alignment
from abcfx.dynamic import DynamicAlignment
from abcfx.errors import (
    AbcfxError,
    CaptureError,
    InfeasibleError,
    InvalidInputError,
    PairingError,
    UnknownOpError,
)
from abcfx.find_c import Solution, find_c, find_c_dag
from abcfx.groups import check_optimizer, param_groups
from abcfx.result import Transformed
from abcfx.rules import register_rule
from abcfx.scaled import scaled
from abcfx.transform import transform

if TYPE_CHECKING:
    from abcfx.checks import coord_check, transfer_check

__all__ = [
    "AbcfxError",
    "CaptureError",
    "DynamicAlignment",
    "InfeasibleError",
    "InvalidInputError",
    "PairingError",
    "Solution",
    "Transformed",
    "UnknownOpError",
    "alignment",
    "check_optimizer",
    "coord_check",
    "find_c",
    "find_c_dag",
    "param_groups",
    "register_rule",
    "scaled",
    "transfer_check",
    "transform",
]

_CHECKS = ("coord_check", "transfer_check")


def __getattr__(name: str) -> Any:
    """Checks train models: what they need is imported when the first of them is asked for."""
    if name in _CHECKS:
        from abcfx import checks

        return getattr(checks, name)
    raise AttributeError(f"module 'abcfx' has no attribute {name!r}")

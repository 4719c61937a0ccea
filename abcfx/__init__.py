"""Scales, init and learning rates that hold at any width, for any PyTorch model: a compiler pass and an LP."""

import importlib
from typing import TYPE_CHECKING, Any

from abcfx.dynamic import DynamicAlignment
from abcfx.errors import (
    AbcfxError,
    CaptureError,
    GrowthError,
    InfeasibleError,
    InvalidInputError,
    PairingError,
    UnknownOpError,
)
from abcfx.lp.networks import Solution, find_c, find_c_dag
from abcfx.pipeline import transform
from abcfx.plan.groups import check_optimizer, param_groups
from abcfx.rewrite.marks import scaled
from abcfx.rules import register_rule
from abcfx.transformed import Transformed

if TYPE_CHECKING:
    from abcfx.checks import coord_check, transfer_check, tune
    from abcfx.growing import grow, upcycle, verify_growth

__all__ = [
    "AbcfxError",
    "CaptureError",
    "DynamicAlignment",
    "GrowthError",
    "InfeasibleError",
    "InvalidInputError",
    "PairingError",
    "Solution",
    "Transformed",
    "UnknownOpError",
    "check_optimizer",
    "coord_check",
    "find_c",
    "find_c_dag",
    "grow",
    "param_groups",
    "register_rule",
    "scaled",
    "transfer_check",
    "transform",
    "tune",
    "upcycle",
    "verify_growth",
]

_LATER = {
    "coord_check": "abcfx.checks",
    "transfer_check": "abcfx.checks",
    "tune": "abcfx.checks",
    "grow": "abcfx.growing",
    "upcycle": "abcfx.growing",
    "verify_growth": "abcfx.growing",
}


def __getattr__(name: str) -> Any:
    """What few runs need is imported when it is first asked for."""
    if name in _LATER:
        return getattr(importlib.import_module(_LATER[name]), name)
    raise AttributeError(f"module 'abcfx' has no attribute {name!r}")

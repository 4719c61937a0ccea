"""Scales, init and learning rates that hold at any width, for any PyTorch model: a compiler pass and an LP."""

from __future__ import annotations

import importlib
from importlib.metadata import version
from typing import TYPE_CHECKING

from abcfx.capture.options import Capture
from abcfx.errors import AbcfxError
from abcfx.exponents.options import Parametrization
from abcfx.lp.networks import find_c, find_c_dag
from abcfx.pipeline import transform
from abcfx.plan.groups import param_groups
from abcfx.plan.options import InitLike, Overrides, Schedule
from abcfx.rewrite.marks import scaled
from abcfx.theory.optimizers import OptimizerFamily
from abcfx.transformed import Transformed

if TYPE_CHECKING:
    from abcfx.checks import check_optimizer, coord_check, transfer_check, tune
    from abcfx.dynamic import DynamicAlignment
    from abcfx.growing import grow, upcycle, verify_growth

__version__ = version("abcfx")
__all__ = [
    "AbcfxError",
    "Capture",
    "DynamicAlignment",
    "InitLike",
    "OptimizerFamily",
    "Overrides",
    "Parametrization",
    "Schedule",
    "Transformed",
    "__version__",
    "check_optimizer",
    "coord_check",
    "find_c",
    "find_c_dag",
    "grow",
    "param_groups",
    "scaled",
    "transfer_check",
    "transform",
    "tune",
    "upcycle",
    "verify_growth",
]

# Imported when they are first asked for: most runs need none of them.
_ROOM_OF = {
    "DynamicAlignment": "abcfx.dynamic",
    "check_optimizer": "abcfx.checks",
    "coord_check": "abcfx.checks",
    "transfer_check": "abcfx.checks",
    "tune": "abcfx.checks",
    "grow": "abcfx.growing",
    "upcycle": "abcfx.growing",
    "verify_growth": "abcfx.growing",
}
_ROOMS = ("checks", "dynamic", "growing", "hyper_connections")


def __getattr__(name: str) -> object:
    if name in _ROOMS:
        return importlib.import_module(f"abcfx.{name}")
    if name in _ROOM_OF:
        return getattr(importlib.import_module(_ROOM_OF[name]), name)
    raise AttributeError(f"module 'abcfx' has no attribute {name!r}")


def __dir__() -> list[str]:
    return list(__all__)

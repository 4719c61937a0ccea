"""Scales, init and learning rates that hold at any width, for any PyTorch model: a compiler pass and an LP.

Names are imported from their rooms when they are first asked for, so that `import abcfx` costs nothing by itself.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from abcfx.capture.options import Capture
    from abcfx.checks import check_optimizer, coord_check, transfer_check, tune
    from abcfx.dynamic import DynamicAlignment
    from abcfx.errors import AbcfxError
    from abcfx.exponents.options import Parametrization
    from abcfx.growing import grow, upcycle, verify_growth
    from abcfx.lp.networks import find_c, find_c_dag
    from abcfx.pipeline import transform
    from abcfx.plan.groups import param_groups
    from abcfx.plan.options import InitLike, Overrides, Schedule
    from abcfx.rewrite.marks import scaled
    from abcfx.theory.optimizers import OptimizerFamily
    from abcfx.transformed import Transformed

    __version__: str

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

_MODULE_OF = {
    "AbcfxError": "errors",
    "Capture": "capture.options",
    "DynamicAlignment": "dynamic",
    "InitLike": "plan.options",
    "OptimizerFamily": "theory.optimizers",
    "Overrides": "plan.options",
    "Parametrization": "exponents.options",
    "Schedule": "plan.options",
    "Transformed": "transformed",
    "check_optimizer": "checks",
    "coord_check": "checks",
    "find_c": "lp.networks",
    "find_c_dag": "lp.networks",
    "grow": "growing",
    "param_groups": "plan.groups",
    "scaled": "rewrite.marks",
    "transfer_check": "checks",
    "transform": "pipeline",
    "tune": "checks",
    "upcycle": "growing",
    "verify_growth": "growing",
}
_ROOMS = ("checks", "dynamic", "errors", "growing", "hyper_connections", "lp", "passes", "rules")


def __getattr__(name: str) -> object:
    if name in _MODULE_OF:
        value: object = getattr(importlib.import_module(f"abcfx.{_MODULE_OF[name]}"), name)
        globals()[name] = value
        return value
    if name == "__version__":
        return importlib.import_module("importlib.metadata").version("abcfx")
    if name in _ROOMS:
        return importlib.import_module(f"abcfx.{name}")
    raise AttributeError(f"module 'abcfx' has no attribute {name!r}")


def __dir__() -> list[str]:
    return list(__all__)

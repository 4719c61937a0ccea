"""Scales, init and learning rates that hold at any width, for any PyTorch model: a compiler pass and an LP.

Each name is imported from its room when it is first asked for; `__init__.pyi` tells type checkers where that is.
"""

from abcfx.support.front import lazy_names

__getattr__, __dir__, __all__ = lazy_names(
    __name__,
    {
        "auditing": ["audit"],
        "capture.options": ["Capture"],
        "checks": ["check_optimizer", "coord_check", "transfer_check", "tune"],
        "dynamic": ["DynamicAlignment"],
        "errors": ["AbcfxError"],
        "exponents.options": ["Parametrization"],
        "growing": ["grow", "upcycle", "verify_growth"],
        "lp.networks": ["find_c", "find_c_dag"],
        "pipeline": ["transform"],
        "plan.groups": ["param_groups"],
        "plan.options": ["InitLike", "Overrides", "Schedule"],
        "rewrite.marks": ["scaled"],
        "theory.optimizers": ["OptimizerFamily"],
        "transformed": ["Transformed"],
    },
    rooms=["auditing", "checks", "dynamic", "errors", "growing", "hyper_connections", "lp", "passes", "rules"],
)

"""The rules, one for each op, which say what it does to sizes and changes, and the kinds of DAG node they build."""

from abcfx.rules import (  # noqa: F401  (filling the registry)
    attention,
    conv,
    elementwise,
    experts,
    fourier,
    linear,
    losses,
    matrices,
    norm,
    recurrent,
    reductions,
    shape,
    transformer,
)
from abcfx.rules.bounds import Bound, ExponentContext
from abcfx.rules.extents import Dim, Number
from abcfx.rules.kinds import Kind, Layer, Vector
from abcfx.rules.op import Op
from abcfx.rules.registry import find_function_rule, find_module_rule, override, plain_name, register_rule
from abcfx.rules.values import Sizes, Value

__all__ = [
    "Bound",
    "Dim",
    "ExponentContext",
    "Kind",
    "Layer",
    "Number",
    "Op",
    "Sizes",
    "Value",
    "Vector",
    "find_function_rule",
    "find_module_rule",
    "override",
    "plain_name",
    "register_rule",
]

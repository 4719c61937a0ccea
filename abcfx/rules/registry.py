"""Which rule speaks for an op: a registry of functions, methods and module types, filled by the files beside it.

One op has many faces: `torch.relu`, `F.relu`, `Tensor.relu_`, `aten.relu.default`, `nn.ReLU`. Torch's own functions are
looked up by their plain name, so one rule serves all of them; a user's functions are looked up by identity.
"""

from __future__ import annotations

import builtins
import math
import operator
from collections.abc import Callable
from typing import Any, TypeVar

import torch

from abcfx.capture.leaves import keep_whole

Rule = Callable[..., Any]
R = TypeVar("R", bound=Rule)

_BY_NAME: dict[str, Rule] = {}
_BY_OBJECT: dict[object, Rule] = {}
_BY_MODULE: dict[type[torch.nn.Module], Rule] = {}

_SAME_NAME = {
    "iadd": "add", "imul": "mul", "isub": "sub", "itruediv": "div", "truediv": "div", "true_divide": "div",
    "divide": "div", "multiply": "mul", "subtract": "sub", "concat": "cat", "concatenate": "cat", "hstack": "cat",
    "swapaxes": "transpose", "swapdims": "transpose", "imatmul": "matmul", "absolute": "abs", "negative": "neg",
    "clip": "clamp", "ipow": "pow", "special_expit": "sigmoid", "movedim": "moveaxis",
}  # fmt: skip


def register_rule(*targets: object) -> Callable[[R], R]:
    """Register a rule for ops that abcfx does not know (or to replace a rule that it has).

    A target is a function as it appears in the graph (mind `torch.fx.wrap` for your own), an `nn.Module` or an
    `autograd.Function` subclass, or the plain name of a torch function, method or custom op ("relu" serves all its
    forms; "mylib::scan" a custom op).
    The rule gets an `Op`, for a module then the module, then the op's own arguments, tensors as `Value`:

        @abcfx.rules.register_rule(my_ops.swiglu)
        def swiglu(op, gate, x):
            return op.product(op.nonlinear(gate), x)    # silu(0) = 0: size and change of its input
    """

    def register(rule: R) -> R:
        for target in targets:
            if isinstance(target, str):
                _BY_NAME[target] = rule
            elif isinstance(target, type) and issubclass(target, torch.nn.Module):
                _BY_MODULE[target] = rule
                keep_whole(target)
            else:
                _BY_OBJECT[target] = rule
        return rule

    return register


def find_function_rule(target: Any) -> Rule | None:
    """The rule of a call_function or call_method target; of an autograd.Function, that of its class."""
    target = getattr(target, "autograd_function", target)
    if not isinstance(target, str) and (rule := _BY_OBJECT.get(target)) is not None:
        return rule
    name = plain_name(target)
    return None if name is None else _BY_NAME.get(name)


def find_module_rule(module: torch.nn.Module) -> Rule | None:
    """The rule of a module: its own class, or the nearest base class that has one."""
    return next((rule for cls in type(module).__mro__ if (rule := _BY_MODULE.get(cls)) is not None), None)


def plain_name(target: Any) -> str | None:
    """The name that all forms of one torch op share; None for a function that is not torch's, operator's or math's."""
    if isinstance(target, str):
        name = target
    elif isinstance(target, torch._ops.OpOverload | torch._ops.OpOverloadPacket):
        namespace, _, name = str(target).partition(".")
        if namespace != "aten":
            return f"{namespace}::{name.partition('.')[0]}"
        name = name.partition(".")[0]
    else:
        module = getattr(target, "__module__", None) or ""
        known = module.split(".")[0] in ("torch", "_operator", "math", "builtins")
        own = getattr(operator, getattr(target, "__name__", ""), None) is target
        bound_to_torch = module == "" and hasattr(torch, getattr(target, "__name__", "?"))
        if not (known or own or bound_to_torch or target in vars(builtins).values() or target in vars(math).values()):
            return None
        name = target.__name__
    if not (name.startswith("__") and name.endswith("__")):
        name = name.strip("_")
    return _SAME_NAME.get(name, name)

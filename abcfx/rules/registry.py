"""The registry of rules: which rule speaks for which function, method or module type.

One op has many spellings: `torch.relu`, `F.relu`, `Tensor.relu_`, `aten.relu.default`. Torch's own functions are looked
up by their plain name, so that one rule serves all spellings; a user's functions are looked up by identity.
"""

from __future__ import annotations

import builtins
import math
import operator
from collections.abc import Callable, Hashable, Iterator, MutableMapping
from contextlib import contextmanager
from types import FunctionType
from typing import TypeAlias, TypeVar

import torch

from abcfx.capture.leaves import is_kept, keep_whole, open_up
from abcfx.capture.registered import registered_name
from abcfx.errors import InvalidInputError
from abcfx.rules.values import Result
from abcfx.support import arguments

Rule: TypeAlias = Callable[..., Result]
R = TypeVar("R", bound=Rule)

_BY_NAME: dict[object, Rule] = {}
_BY_OBJECT: dict[object, Rule] = {}
_BY_MODULE: dict[object, Rule] = {}

_SAME_NAME = {
    "iadd": "add", "imul": "mul", "isub": "sub", "itruediv": "div", "truediv": "div", "true_divide": "div",
    "divide": "div", "multiply": "mul", "subtract": "sub", "concat": "cat", "concatenate": "cat", "hstack": "cat",
    "swapaxes": "transpose", "swapdims": "transpose", "imatmul": "matmul", "absolute": "abs", "negative": "neg",
    "clip": "clamp", "ipow": "pow", "special_expit": "sigmoid", "movedim": "moveaxis", "floor_divide": "floordiv",
    "ifloordiv": "floordiv", "float_power": "pow", "greater": "gt", "greater_equal": "ge", "less": "lt",
    "less_equal": "le", "not_equal": "ne", "row_stack": "vstack", "column_stack": "cat", "fix": "trunc",
    "arctan2": "atan2", "ger": "outer", "linalg_vecdot": "vecdot", "special_psi": "digamma",
    "special_gammaln": "lgamma", "special_multigammaln": "mvlgamma", "special_modified_bessel_i0": "i0",
    "special_gammainc": "igamma", "special_gammaincc": "igammac", "special_modified_bessel_i1": "special_i1",
    "linalg_inv": "inverse", "linalg_pinv": "pinverse", "linalg_multi_dot": "chain_matmul", "trapz": "trapezoid",
    **{f"arc{each}": f"a{each}" for each in ("cos", "cosh", "sin", "sinh", "tan", "tanh")},
    **{
        f"special_{each}": each
        for each in (
            "digamma", "erf", "erfc", "erfinv", "exp2", "expm1", "i0", "log1p", "log_softmax", "logit", "logsumexp",
            "polygamma", "round", "sinc", "softmax", "xlogy",
        )
    },
    **{
        f"linalg_{each}": each
        for each in (
            "cholesky", "cross", "det", "diagonal", "matmul", "matrix_exp", "matrix_power", "qr", "slogdet", "svd",

        )
    },
    **{
        f"__{each}__": each
        for each in (
            "eq", "floordiv", "ge", "gt", "le", "lt", "ne", "rdiv", "rfloordiv", "rmatmul", "rmod", "rpow", "rsub",
        )
    },
    **{
        f"{each}_copy": each
        for each in (
            "alias", "as_strided", "detach", "diagonal", "expand", "narrow", "permute", "select", "slice", "split",
            "split_with_sizes", "squeeze", "t", "transpose", "unbind", "unfold", "unsqueeze", "view",
            "view_as_complex", "view_as_real",
        )
    },
    **{f"unsafe_{each}": each for each in ("chunk", "split", "split_with_sizes")},
}  # fmt: skip


def register_rule(*targets: object) -> Callable[[R], R]:
    """Register a rule, which says how large an op makes entries and how they change in training.

    It may be for an op that abcfx does not know, or take the place of a rule that it has. The rule gets an `Op`, for a
    module then the module, then the op's own arguments, where tensors are `Value`. It speaks by the methods of `Op`.

    Args:
        targets: functions as they appear in the graph (mind `torch.fx.wrap` for your own), subclasses of `nn.Module` or
            `autograd.Function`, or plain names of torch functions, methods or custom ops: "relu" serves all spellings
            of relu, "mylib::scan" a custom op.

    Returns:
        A decorator that registers a rule and returns it.

    Example:
        >>> @register_rule("mylib::swiglu")
        ... def swiglu(op, gate, x):
        ...     return op.product(op.nonlinear(gate), x)  # silu(0) = 0: as large as its input
    """

    if not targets:
        raise InvalidInputError(
            "register_rule: expected the ops that the rule is for, got none.\n  To fix: @register_rule('mylib::scan')"
        )
    if len(targets) == 1 and _looks_like_a_rule(targets[0]):
        raise InvalidInputError(
            "register_rule: expected the op that the rule is for, got the rule itself.\n"
            "  To fix: @register_rule('mylib::scan'), with the op in parentheses, above the rule"
        )

    def register(rule: R) -> R:
        """Register a rule for the ops that were given to the decorator, and return it.

        Captured graphs then call modules of the given classes as a whole, so that the rule sees the call.
        """
        arguments.function("register_rule: rule", rule)
        for target in targets:
            rules, key = _place_of(target)
            rules[key] = rule
            if rules is not _BY_NAME:
                keep_whole(key)
        return rule

    return register


def _looks_like_a_rule(target: object) -> bool:
    """Whether a target is a Python function whose first argument is called `op`, as a rule's is and no op's."""
    return isinstance(target, FunctionType) and target.__code__.co_varnames[:1] == ("op",)


@contextmanager
def override(target: object, rule: Rule) -> Iterator[None]:
    """Register a rule for one op or module type within a `with` block; the rule before it then holds again.

    Args:
        target: a function, a module type or a name, as in `register_rule`.
        rule: a function that says, by the methods of the `Op` that it gets, what the op does.

    Example:
        >>> with override("mylib::scan", lambda op, x: op.same(x)):
        ...     pass  # result = abcfx.transform(model, x)
    """
    arguments.function("override: rule", rule)
    rules, key = _place_of(target)
    before = rules.get(key)
    was_whole = rules is not _BY_NAME and is_kept(key)
    register_rule(target)(rule)
    try:
        yield
    finally:
        if before is None:
            del rules[key]
        else:
            rules[key] = before
        if rules is not _BY_NAME and not was_whole:
            open_up(key)


def _place_of(target: object) -> tuple[MutableMapping[object, Rule], object]:
    """Return the table of rules to which a function, module type or name belongs, and its key in that table.

    Raises:
        InvalidInputError: it is none of these.
    """
    if not callable(target) and not (isinstance(target, str) and target):
        expected = "a function, a class of modules, or the name of an op"
        raise arguments.wrong("rule", target, expected, "@register_rule('mylib::scan')")
    if isinstance(target, torch.nn.Module):
        fix = f"@register_rule({type(target).__name__})"
        raise arguments.wrong("rule", target, "a class of modules, not an instance", fix)
    if isinstance(target, str):
        return _BY_NAME, plain_name(target)
    if isinstance(target, type) and issubclass(target, torch.nn.Module):
        return _BY_MODULE, target
    return _BY_OBJECT, target


def find_function_rule(target: object) -> Rule | None:
    """Return the rule for a called function or method; None if there is none.

    For the `apply` of an autograd.Function it is the rule of its class.
    """
    target = getattr(target, "autograd_function", target)
    if not isinstance(target, Hashable):
        return None
    if not isinstance(target, str) and (rule := _BY_OBJECT.get(target)) is not None:
        return rule
    name = plain_name(target)
    return None if name is None else _BY_NAME.get(name)


def find_module_rule(module: torch.nn.Module) -> Rule | None:
    """Return the rule for a module's class, or for the nearest base class that has one; None if none has."""
    return next((rule for cls in type(module).__mro__ if (rule := _BY_MODULE.get(cls)) is not None), None)


def plain_name(target: object) -> str | None:
    """Return the name that all spellings of one torch op share; None for a function not of torch, operator or math.

    Example:
        >>> plain_name(torch.relu_), plain_name(torch.ops.aten.relu.default), plain_name(operator.truediv)
        ('relu', 'relu', 'div')
    """
    if isinstance(target, str):
        name = target
    elif (registered := registered_name(target)) is not None:
        namespace, name = registered
        if namespace != "aten":
            return f"{namespace}::{name}"
    else:
        name = str(getattr(target, "__name__", ""))
        if not _is_known(target, name):
            return None
    if not (name.startswith("__") and name.endswith("__")):
        name = name.strip("_")
    return _SAME_NAME.get(name, name)


def _is_known(target: object, name: str) -> bool:
    """Whether a function called `name` belongs to torch, operator, math or the builtins."""
    module = getattr(target, "__module__", None) or ""
    if module.split(".")[0] in ("torch", "_operator", "math", "builtins"):
        return True
    is_bound_to_torch = module == "" and hasattr(torch, name or "?")
    known = (*vars(builtins).values(), *vars(math).values())
    return getattr(operator, name, None) is target or is_bound_to_torch or target in known

"""Runs a traced graph on abstract tensors, each op by its rule, and so builds the nodes of the layer DAG."""

from __future__ import annotations

import inspect
import math
import operator
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
import torch.fx as fx
from torch.fx.operator_schemas import get_signature_for_torch_op
from torch.fx.proxy import GraphAppendingTracer

from abcfx.errors import UnknownOpError
from abcfx.rules import Number, Op, Sizes, Value, find_function_rule, find_module_rule, plain_name
from abcfx.rules.builder import DagBuilder
from abcfx.rules.elementwise import constant as makes_constant
from abcfx.rules.extents import ScalarArgument
from abcfx.rules.values import is_discrete, shape_of
from abcfx.support import trees
from abcfx.support.location import location, module_path


def _leaves(value: object) -> list[object]:
    return trees.leaves(value, is_leaf=lambda x: isinstance(x, Value | Sizes | Number))


def tensors(value: Any) -> list[Value]:
    return [leaf for leaf in _leaves(value) if isinstance(leaf, Value)]


def _returned_by(node: fx.Node, value: Any) -> Any:
    """A tensor is where the node returns it, whatever its rule took it from."""
    if not isinstance(value, Value):
        return value
    return replace(value, at=node, shape=shape_of(node) or value.shape)


def _positional(
    node: fx.Node, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Keywords that name torch's next positional arguments, in their place: addmm(bias, mat1=x, mat2=w)."""
    if not kwargs:
        return args, {}
    if isinstance(node.target, torch._ops.OpOverload):
        arguments = node.target._schema.arguments
        orders = [({a.name for a in arguments}, [a.name for a in arguments if not a.kwarg_only])]
    else:
        target = node.target if callable(node.target) else getattr(torch, str(node.target), None)
        found = get_signature_for_torch_op(target) if target is not None else None
        orders = [(set(s.parameters), _positional_names(s)) for s in found or ()]
    return _in_place(next((names for known, names in orders if set(kwargs) <= known), []), args, kwargs)


def _positional_names(signature: inspect.Signature) -> list[str]:
    return [name for name, p in signature.parameters.items() if p.kind is not p.KEYWORD_ONLY]


def _in_place(
    names: list[str], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    moved, rest = list(args), dict(kwargs)
    for name in names[len(args) :]:
        if name not in rest:
            break
        moved.append(rest.pop(name))
    return tuple(moved), rest


def _lost(given: Iterable[Any], returned: Any) -> str:
    """What an op was given that should change with training while nothing that it returned does."""
    results = tensors(returned)
    if not results or not all(value.is_constant for value in results):
        return ""
    names = [v.node or v.parameter for v in given if isinstance(v, Value) and not v.is_constant]
    return ", ".join(str(name) for name in names)


class Interpreter:
    """Runs an fx graph on abstract tensors. Ops on constants alone stay constants and need no rule."""

    def __init__(
        self,
        module: fx.GraphModule,
        builder: DagBuilder,
        report_unknown: bool,
        at: fx.Node | None = None,
    ) -> None:
        self.module, self.builder, self.at = module, builder, at
        self.report_unknown, self.notes = report_unknown, list[str]()
        self.values: dict[fx.Node, Any] = {}

    def run(self, graph: fx.Graph) -> Any:
        returned: Any = None
        for node in graph.nodes:
            if node.op == "output":
                returned = self._load(node.args)
            elif node not in self.values:
                self.values[node] = _returned_by(self.at or node, self._evaluate(node))
                if _writes(node):
                    self._write_back(node)
        return returned

    def _run_inside(self, inside: fx.GraphModule, inputs: tuple[Any, ...]) -> Any:
        """A region of its own (no_grad, autocast) is a graph that a node calls with its inputs."""
        placeholders = [n for n in inside.graph.nodes if n.op == "placeholder"]
        inner = Interpreter(inside, self.builder, self.report_unknown)
        inner.values = {p: _returned_by(p, value) for p, value in zip(placeholders, inputs, strict=True)}
        (returned,) = inner.run(inside.graph)
        self.notes += inner.notes
        return returned

    def _run_traced(self, node: fx.Node, inside: fx.Graph, inputs: list[Value]) -> Any:
        """A custom autograd.Function without a rule is what its forward does; its own gradient is taken to agree."""
        inner = Interpreter(self.module, self.builder, self.report_unknown, at=node)
        inner.values = dict(zip(inside.find_nodes(op="placeholder"), inputs, strict=True))
        (returned,) = inner.run(inside)
        name = str(getattr(getattr(node.target, "autograd_function", None), "__name__", node.target))
        self.notes += [*inner.notes, f"{name} has a gradient of its own: its forward says how sizes change"]
        return returned

    def _write_back(self, node: fx.Node) -> None:
        """An op that writes into its first argument changes that tensor and what it is a view of, from here on."""
        written = self.values[node]
        target = node.args[0]
        while isinstance(target, fx.Node) and isinstance(written, Value) and written.node is not None:
            if isinstance(held := self.values[target], Value):
                self.values[target] = replace(held, node=written.node, parameter=None)
            is_view = target.op in ("call_function", "call_method") and plain_name(target.target) in _VIEWS
            target = target.args[0] if is_view else None

    def _load(self, arguments: Any) -> Any:
        return fx.node.map_arg(arguments, lambda node: self.values[node])

    def _evaluate(self, node: fx.Node) -> Any:
        op = Op(self.builder, self.at or node, module_path(self.at or node), is_inside=self.at is not None)
        if node.op == "placeholder":
            return op.constant()
        if node.op == "get_attr":
            return self._attribute(op, node)
        args, kwargs = self._load(node.args), self._load(node.kwargs)
        leaves = _leaves((args, kwargs))
        values = [leaf for leaf in leaves if isinstance(leaf, Value | Sizes)]
        if node.op == "call_module":
            return self._call_module(op, node, args, kwargs, values)
        if not node.users and node.meta.get("val") is None and not _writes(node):
            return op.constant()  # an assertion
        if is_discrete(node):
            return op.constant()
        if all(isinstance(v, Value) and v.is_constant for v in values):
            return _arithmetic(op, node, args) if any(isinstance(leaf, Number) for leaf in leaves) else op.constant()
        if isinstance(node.target, type):  # a dataclass or named tuple is filled
            return (*args, *kwargs.values())
        if (inside := next((a for a in args if isinstance(a, fx.GraphModule)), None)) is not None:
            return self._run_inside(inside, args[args.index(inside) + 1 :])
        if plain_name(node.target) == "add" and any(isinstance(a, Sizes) for a in args):
            return op.constant()  # x.shape[:-1] + (heads, -1): a shape for a view
        rule = find_function_rule(node.target)
        if rule is None and (traced := _traced_forward(node, args, kwargs)) is not None:
            return self._run_traced(node, traced, [v for v in args if isinstance(v, Value)])
        if rule is None:
            return self._unknown(op, node, node.target, values)
        result = self._apply(rule, op, *_positional(node, args, kwargs))
        takes_result = node.target is operator.getitem and isinstance(args[0], tuple)
        excused = takes_result or rule is makes_constant or plain_name(node.target) in _ONLY_LOOKS_AT
        if not excused and (lost := _lost(values, result)):
            raise UnknownOpError(
                f"The rule for {node.target} loses {lost}: it was given it and returned only constants.\n"
                f"  in {location(node)}\n"
                f"  To fix: return a Value made by a method of `op` (op.same, op.layer, op.product, ...)."
            )
        return result

    def _call_module(self, op: Op, node: fx.Node, args: Any, kwargs: Any, values: Iterable[Any]) -> Any:
        module = self.module.get_submodule(str(node.target))
        constant = all(isinstance(v, Value) and v.is_constant for v in values)
        if constant and next(module.parameters(), None) is None:
            return op.constant()
        rule = find_module_rule(module)
        if rule is None:
            return self._unknown(op, node, type(module), values)
        args, kwargs = _in_place(_positional_names(inspect.signature(module.forward)), args, kwargs)
        return self._apply(rule, op, (module, *args), kwargs)

    @staticmethod
    def _apply(rule: Callable[..., Any], op: Op, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        try:
            inspect.signature(rule).bind(op, *args, **kwargs)
        except TypeError as error:
            raise UnknownOpError(
                f"The rule for {op.at.target} does not take the arguments of this call: {error}\n"
                f"  in {location(op.at)}\n"
                f"  To fix: register a rule that does,\n"
                f"      @abcfx.rules.register_rule({plain_name(op.at.target) or op.at.target!r})"
            ) from None
        return rule(op, *args, **kwargs)

    def _unknown(self, op: Op, node: fx.Node, target: Any, values: Iterable[Any]) -> Any:
        """An op without a rule: an error, or, when asked for, a merge of what goes in, with a note."""
        error = _unknown(node, target)
        if not self.report_unknown:
            raise error
        first, where, *_ = str(error).splitlines()
        self.notes.append(f"{first}{where.rstrip()}: taken to pass on the largest change among its inputs")
        merged = op.merge([v for v in values if isinstance(v, Value)])
        val = node.meta.get("val")
        return op.several(merged, len(val)) if isinstance(val, list | tuple) else merged

    def _attribute(self, op: Op, node: fx.Node) -> Any:
        owner, _, name = str(node.target).rpartition(".")
        held = getattr(self.module.get_submodule(owner), name)
        if isinstance(held, torch.nn.Parameter) and held in self.builder.names:
            shape = tuple(held.shape)
            return Value(at=node, parameter=self.builder.names[held], dims=tuple(range(held.ndim)), shape=shape)
        return op.constant() if isinstance(held, torch.Tensor) else held


class _NoContext:
    """Stands for the `ctx` of an autograd.Function: takes whatever is saved in it."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *args, **kwargs: None


def _traced_forward(node: fx.Node, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> fx.Graph | None:
    """The forward of a custom autograd.Function as a graph of its tensor inputs; None where that cannot be traced."""
    function = getattr(node.target, "autograd_function", None)
    if function is None or kwargs:
        return None
    graph = fx.Graph()
    tracer = GraphAppendingTracer(graph)
    given = [
        fx.Proxy(graph.placeholder(f"input_{i}"), tracer) if isinstance(value, Value) else value
        for i, value in enumerate(args)
    ]
    try:
        graph.output(tracer.create_arg(function.forward(_NoContext(), *given)))
    except Exception:  # Python that looks at values, or a forward without ctx: the op then needs a rule
        return None
    return graph


_ONLY_LOOKS_AT = frozenset({"type_as", "to", "expand_as", "view_as", "reshape_as"})  # shape or dtype of the second
_VIEWS = frozenset({
    "getitem", "select", "slice", "view", "narrow", "transpose", "permute", "squeeze", "unsqueeze", "index", "expand",
    "flatten", "reshape", "diagonal", "t", "alias", "detach", "unflatten",
})  # fmt: skip


def _writes(node: fx.Node) -> bool:
    """Whether an op writes into its first argument: `add_`, `aten.copy_.default`, `x[i] = y`."""
    if node.op not in ("call_function", "call_method"):
        return False
    if node.target is operator.setitem:
        return True
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    name = name.partition(".")[0]
    return name.endswith("_") and not name.endswith("__")


_ARITHMETIC: dict[str, Callable[[Number, Number], Number]] = {
    "mul": lambda x, y: x.times(y),
    "div": lambda x, y: x.times(y.power(-1.0)),
    "floordiv": lambda x, y: x.times(y.power(-1.0)),
    "add": lambda x, y: x if x.powers else y,
    "sub": lambda x, y: x if x.powers else y,
}


def _arithmetic(op: Op, node: fx.Node, args: tuple[Any, ...]) -> Any:
    """Arithmetic on Python numbers that may depend on width, such as head_dim ** -0.5."""
    name = plain_name(node.target)

    def operand(index: int) -> Number:
        value = args[index]
        if isinstance(value, Number):
            return value
        return Number(((ScalarArgument(node, index), 1.0),)) if isinstance(value, int | float) else Number()

    if name == "pow" and isinstance(args[1], int | float):
        return operand(0).power(float(args[1]))
    if name in ("sqrt", "sym_sqrt"):
        return operand(0).power(0.5)
    if name in _ARITHMETIC and len(args) == 2:
        return _ARITHMETIC[name](operand(0), operand(1))
    if node.target in (int, float, operator.neg, abs, math.floor, math.ceil, round):
        return operand(0)
    return op.constant()


def _unknown(node: fx.Node, target: Any) -> UnknownOpError:
    target = getattr(target, "autograd_function", target)
    is_module = isinstance(target, type) and issubclass(target, torch.nn.Module)
    name = None if isinstance(target, type) else plain_name(target)
    qualified = getattr(target, "__qualname__", type(target).__qualname__)
    shown = f"Tensor.{target}" if isinstance(target, str) else f"{target.__module__}.{qualified}"
    key = f'"{name}"' if name else getattr(target, "__name__", str(target))
    arguments = "op, module, x" if is_module else "op, x"
    return UnknownOpError(
        f"No rule for {shown}\n"
        f"  in {location(node)}\n"
        f"  expected: an op whose effect on a tensor's size and change is known; got graph node {node.name!r}.\n"
        f"  To fix, say before calling transform what it does; for example, it keeps size and change, as relu does:\n"
        f"      @abcfx.rules.register_rule({key})\n"
        f"      def rule({arguments}, *args, **kwargs):\n"
        f"          return op.same(x)"
    )

"""Runs a traced graph on abstract tensors, each op by its rule, and so builds the nodes of the layer DAG."""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

import torch
import torch.fx as fx
from torch.fx.proxy import GraphAppendingTracer

from abcfx.dag.arguments import forward_arguments, leaves, load, positional
from abcfx.dag.arithmetic import compute_number
from abcfx.dag.dependence import unread
from abcfx.errors import UnknownOpError
from abcfx.rules import Number, Op, Sizes, Value, find_function_rule, find_module_rule, plain_name
from abcfx.rules.builder import DagBuilder
from abcfx.rules.op_properties import VIEWS
from abcfx.rules.refused import REFUSED
from abcfx.rules.registry import Rule
from abcfx.rules.values import is_discrete, shape_of
from abcfx.support.location import location, module_path


class Interpreter:
    """An interpreter that runs an fx graph on abstract tensors, each op by its rule, and so builds a layer DAG.

    An abstract tensor records from which parameter or DAG node a tensor comes; the layer DAG is a graph of the model's
    layers and other ops. An op on constants alone gives a constant and needs no rule.

    Attributes:
        notes: sentences for the report, about ops whose rule had to be guessed.
    """

    def __init__(
        self, module: fx.GraphModule, builder: DagBuilder, guesses_unknown: bool, inside: fx.Node | None = None
    ) -> None:
        """Prepare to run the graphs of a module on abstract tensors, which record where a tensor comes from.

        Args:
            module: owns the parameters, buffers and modules that the graph names.
            builder: collects the nodes of the layer DAG.
            guesses_unknown: whether an op without a rule passes on the largest change among its inputs, with a note.
            inside: the node of the custom autograd.Function whose forward the graph is.
        """
        self.notes: list[str] = []
        self._module, self._builder = module, builder
        self._guesses_unknown, self._inside = guesses_unknown, inside
        self._values: dict[fx.Node, object] = {}

    def run(self, graph: fx.Graph, inputs: Sequence[object] | None = None) -> object:
        """Run a graph on abstract tensors (records of where a tensor comes from) and return what it returns.

        Args:
            graph: the graph.
            inputs: abstract values of its placeholders; without them, placeholders are constants.
        """
        if inputs is not None:
            self._values = dict(zip(graph.find_nodes(op="placeholder"), inputs, strict=True))
        returned: object = None
        for node in graph.nodes:
            if node.op == "output":
                returned = load(node.args, self._values)
            elif node not in self._values:
                self._values[node] = _returned_by(self._inside or node, self._evaluate(node))
                if _writes(node):
                    self._write_back(node)
        return returned

    # -- one node

    def _evaluate(self, node: fx.Node) -> object:
        """Return the abstract result (a record of where a tensor comes from) of one fx node, by the rule of its op.

        Raises:
            UnknownOpError: the op has no rule.
        """
        at = self._inside or node
        op = Op(self._builder, at, module_path(at), is_inside=self._inside is not None)
        if node.op == "placeholder":
            return op.constant()
        if node.op == "get_attr":
            return self._attribute(op, node)
        args = tuple(load(each, self._values) for each in node.args)
        kwargs = {key: load(each, self._values) for key, each in node.kwargs.items()}
        values = [leaf for leaf in leaves((args, kwargs)) if isinstance(leaf, Value | Sizes)]
        if node.op == "call_module":
            return self._call_module(op, node, args, kwargs, values)
        is_assertion = not node.users and node.meta.get("val") is None and not _writes(node)
        if is_assertion or is_discrete(node):
            return op.constant()
        joins = plain_name(node.target) == "cat" and "out" not in node.kwargs  # a layer may meet the parts apart
        if all(isinstance(v, Value) and v.is_constant for v in values) and not joins:
            has_number = any(isinstance(leaf, Number) for leaf in leaves((args, kwargs)))
            number = compute_number(node, args) if has_number else None
            return op.constant() if number is None else number
        if isinstance(node.target, type):  # a dataclass or named tuple is filled
            return (*args, *kwargs.values())
        if (region := next((a for a in args if isinstance(a, fx.GraphModule)), None)) is not None:
            return self._run_region(region, args[args.index(region) + 1 :])
        if plain_name(node.target) == "add" and any(isinstance(a, Sizes) for a in args):
            return op.constant()  # x.shape[:-1] + (heads, -1): a shape for a view
        return self._call_function(op, node, args, kwargs, values)

    def _attribute(self, op: Op, node: fx.Node) -> object:
        """Return the abstract value of a get_attr node: for a parameter its name and dims, else a constant.

        An abstract value records where a tensor of the graph comes from.
        """
        owner, _, name = str(node.target).rpartition(".")
        held: object = getattr(self._module.get_submodule(owner), name)
        if isinstance(held, torch.nn.Parameter) and held in self._builder.names:
            shape = tuple(held.shape)
            return Value(at=node, parameter=self._builder.names[held], dims=tuple(range(held.ndim)), shape=shape)
        return op.constant() if isinstance(held, torch.Tensor) else held

    def _call_module(
        self,
        op: Op,
        node: fx.Node,
        args: tuple[object, ...],
        kwargs: Mapping[str, object],
        values: Sequence[Value | Sizes],
    ) -> object:
        """Return the abstract result (a record of where a tensor comes from) of a module call, by its class's rule.

        Args:
            op: what the rule gets, to speak about the op.
            node: the call.
            args: positional arguments, abstract where they are tensors.
            kwargs: keyword arguments.
            values: the abstract tensors and sizes among the arguments.
        """
        module = self._module.get_submodule(str(node.target))
        is_constant = all(isinstance(v, Value) and v.is_constant for v in values)
        if is_constant and next(module.parameters(), None) is None:
            return op.constant()
        rule = find_module_rule(module)
        if rule is None:
            return self._guess(op, node, type(module), values)
        moved, rest = forward_arguments(module, args, kwargs)
        held = [Value(parameter=name) for p in module.parameters() if (name := self._builder.names.get(p)) is not None]
        return self._apply(rule, op, (module, *moved), rest, [*values, *held])

    def _call_function(
        self,
        op: Op,
        node: fx.Node,
        args: tuple[object, ...],
        kwargs: Mapping[str, object],
        values: Sequence[Value | Sizes],
    ) -> object:
        """Return the abstract result (a record of where a tensor comes from) of a function call, by the rule of its op.

        Args:
            op: what the rule gets, to speak about the op.
            node: the call.
            args: positional arguments, abstract where they are tensors.
            kwargs: keyword arguments.
            values: the abstract tensors and sizes among the arguments.

        Raises:
            UnknownOpError: there is no rule, or it loses an input that training changes.
        """
        rule = find_function_rule(node.target)
        if rule is None and (forward := _traced_forward(node, args, kwargs)) is not None:
            return self._run_forward(node, forward, [v for v in args if isinstance(v, Value)])
        if rule is None:
            return self._guess(op, node, node.target, values)
        return self._apply(rule, op, *positional(node.target, args, kwargs), values)

    def _apply(
        self,
        rule: Rule,
        op: Op,
        args: Sequence[object],
        kwargs: Mapping[str, object],
        given: Iterable[Value | Sizes],
    ) -> object:
        """Return what the rule of an op returns; raise an error unless that depends on all tensors given to the op.

        Args:
            rule: the rule, a function that says what the op does.
            op: what the rule gets, to speak about the op.
            args: positional arguments, abstract where they are tensors.
            kwargs: keyword arguments.
            given: the abstract tensors and sizes among the arguments.
        """
        try:
            inspect.signature(rule).bind(op, *args, **kwargs)
        except TypeError as error:
            raise UnknownOpError(
                f"The rule for {op.at.target} does not take the arguments of this call: {error}\n"
                f"  in {location(op.at)}\n"
                f"  To fix: register a rule that does,\n"
                f"      @abcfx.rules.register_rule({plain_name(op.at.target) or op.at.target!r})"
            ) from None
        before = len(self._builder.nodes)
        result = rule(op, *args, **kwargs)
        if op.at.target is operator.getitem and isinstance(args[0], tuple):
            return result
        inputs = [value for value in given if isinstance(value, Value) and value not in op.disregarded]
        if lost := unread(self._builder, before, inputs, result):
            raise _loses(op, [str(value.node or value.parameter) for value in lost])
        return result

    def _guess(self, op: Op, node: fx.Node, target: object, values: Iterable[Value | Sizes]) -> object:
        """Handle an op without a rule: raise an error or, if guesses are allowed, return its inputs merged.

        The result, one for each tensor that the op returns, is as large and changes as much as the largest input;
        `notes` gets a sentence for the report.

        Args:
            op: records what the op does.
            node: the call.
            target: the function or class of module that is called.
            values: the abstract tensors and sizes among the arguments.

        Raises:
            UnknownOpError: guesses are not allowed; names the place and the line to write.
        """
        if not self._guesses_unknown:
            raise _unknown_op(node, target)
        self.notes.append(
            f"No rule for {_shown(target)}  in {location(node)}: taken to pass on the largest change among its inputs"
        )
        merged = op.merge([v for v in values if isinstance(v, Value)])
        val = node.meta.get("val")
        return op.several(merged, len(val)) if isinstance(val, list | tuple) else merged

    # -- graphs inside a node

    def _run_region(self, region: fx.GraphModule, inputs: Sequence[object]) -> object:
        """Run the subgraph of a no_grad or autocast region on abstract inputs (records of where tensors come from).

        Returns the abstract results.
        """
        placeholders = region.graph.find_nodes(op="placeholder")
        given = [_returned_by(p, value) for p, value in zip(placeholders, inputs, strict=True)]
        inner = Interpreter(region, self._builder, self._guesses_unknown)
        returned = _only(inner.run(region.graph, given))
        self.notes += inner.notes
        return returned

    def _run_forward(self, node: fx.Node, forward: fx.Graph, inputs: Sequence[Value]) -> object:
        """Run the traced forward of a custom autograd.Function without a rule on abstract inputs; return the result.

        An abstract input records where a tensor comes from. The Function's backward is assumed to match its forward.

        Args:
            node: the call of the Function.
            forward: the traced graph of its forward.
            inputs: the abstract tensors that the Function gets.
        """
        inner = Interpreter(self._module, self._builder, self._guesses_unknown, inside=node)
        returned = _only(inner.run(forward, inputs))
        name = str(getattr(getattr(node.target, "autograd_function", None), "__name__", node.target))
        self.notes += [*inner.notes, f"{name} has a gradient of its own: its forward says how sizes change"]
        return returned

    def _write_back(self, node: fx.Node) -> None:
        """Give the first argument of an in-place op, and the tensor that this is a view of, the value of the result."""
        written = self._values[node]
        target: object = node.args[0]
        if isinstance(target, fx.Node) and isinstance(written, Value) and written.is_constant:
            self._values[target] = written  # x.zero_(), x.fill_(1): nothing is left of what x was
        while isinstance(target, fx.Node) and isinstance(written, Value) and written.node is not None:
            if isinstance(held := self._values[target], Value):
                self._values[target] = replace(held, node=written.node, parameter=None, concatenation=None)
            is_view = target.op in ("call_function", "call_method") and plain_name(target.target) in VIEWS
            target = target.args[0] if is_view else None


def _only(returned: object) -> object:
    """Return the one result of a traced graph, which torch wraps in a tuple."""
    assert isinstance(returned, tuple)
    (result,) = returned
    return result


def _returned_by(node: fx.Node, value: object) -> object:
    """Return an abstract tensor, a record of where a tensor of the graph comes from, with `node` as its `at`.

    `at` is the fx node that returns the tensor; the rule may have set it to another node.
    """
    if not isinstance(value, Value):
        return value
    return replace(value, at=node, shape=shape_of(node) or value.shape)


def _writes(node: fx.Node) -> bool:
    """Whether an op writes into its first argument, as `add_`, `aten.copy_.default` and `x[i] = y` do."""
    if node.op not in ("call_function", "call_method"):
        return False
    if node.target is operator.setitem:
        return True
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    name = name.partition(".")[0]
    return name.endswith("_") and not name.endswith("__")


def _loses(op: Op, lost: Sequence[str]) -> UnknownOpError:
    """Return the error that the rule of an op made its result of fewer tensors than the op is given.

    `lost` says which tensors the result does not depend on.
    """
    return UnknownOpError(
        f"The rule for {op.at.target} loses {', '.join(lost)}, which training changes.\n"
        f"  in {location(op.at)}\n"
        f"  expected: a result made of every tensor that the op is given; got one that does not depend on this.\n"
        f"  To fix: let the rule give it to a method of `op` (op.layer, op.product, op.merge, ...), or write, if it\n"
        f"  does not matter to the result: op.disregard(value)"
    )


class _NoContext:
    """A stand-in for the `ctx` of an autograd.Function, so that its forward can be traced; it drops what is saved."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        """Return a function that does nothing, for any method of the context."""
        return lambda *args, **kwargs: None


def _traced_forward(node: fx.Node, args: Sequence[object], kwargs: Mapping[str, object]) -> fx.Graph | None:
    """Trace the forward of a custom autograd.Function as a graph of its tensor inputs; None where that fails."""
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
    except Exception:  # a user's forward may look at tensor values or its ctx and raise anything: it then needs a rule
        return None
    return graph


def _shown(target: object) -> str:
    """Return the qualified name of a called op or module type for an error, such as Tensor.add."""
    target = getattr(target, "autograd_function", target)
    if isinstance(target, str):
        return f"Tensor.{target}"
    return f"{getattr(target, '__module__', '')}.{getattr(target, '__qualname__', type(target).__qualname__)}"


def _unknown_op(node: fx.Node, target: object) -> UnknownOpError:
    """Return the error for an op without a rule, with the reason for it if the op is one of torch's."""
    target = getattr(target, "autograd_function", target)
    is_module = isinstance(target, type) and issubclass(target, torch.nn.Module)
    name = None if isinstance(target, type) else plain_name(target)
    key = f'"{name}"' if name else getattr(target, "__name__", str(target))
    reason = REFUSED.get(name or "")
    arguments = ", ".join(("op", *(["module"] if is_module else []), *_argument_names(node)))
    return UnknownOpError(
        f"No rule for {_shown(target)}{f': {reason}' if reason else ''}\n"
        f"  in {location(node)}\n"
        f"  expected: an op whose effect on a tensor's size and change is known; got graph node {node.name!r}.\n"
        f"  To fix, say before calling transform what it does:\n"
        f"      @abcfx.rules.register_rule({key})\n"
        f"      def rule({arguments}, *args, **kwargs):\n"
        f"          ...\n"
        f"  and return op.same(x) if it does to x what relu does, op.nonlinear(x) for gelu, op.pointwise(x) for\n"
        f"  sigmoid, op.merge([x, y]) for x + y, op.product(x, y) for x * y; docs/rules.md has the others. Each\n"
        f"  tensor that training changes must be among them."
    )


def _argument_names(node: fx.Node) -> list[str]:
    """Return a name for each leading tensor argument of an op, for the signature of the rule that an error suggests."""
    count = next((i for i, each in enumerate(node.args) if not isinstance(each, fx.Node)), len(node.args))
    return ["x", "y", "z"][:count] if count <= 3 else [f"x{i}" for i in range(1, count + 1)]

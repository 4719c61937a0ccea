"""Fake tensors and traced sizes: the only place that touches them.

torch has no public import for `FakeTensorMode`, nor for the expression behind a `torch.SymInt`; `ShapeEnv` is
documented under torch.fx.experimental.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import fx, nn
from torch._dispatch.python import enable_python_dispatcher
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensor, FakeTensorMode
from torch.fx.experimental.symbolic_shapes import (
    DimDynamic,
    GuardOnDataDependentSymNode,
    ShapeEnv,
    StatelessSymbolicContext,
)

from abcfx.capture.graphs import at_front
from abcfx.errors import CaptureError
from abcfx.support import trees

# What fake tensors raise when Python asks for a value.
GUARD_ERRORS = (GuardOnDataDependentSymNode, DataDependentOutputException)
SYMBOLIC = (torch.SymInt, torch.SymFloat, torch.SymBool)


class FakeInputs:
    """Fake copies of the example inputs, with symbols for sizes.

    Args:
        examples: the inputs by name.
        free: which dims of each get a symbol; the others keep the size they have.
    """

    def __init__(self, examples: Mapping[str, torch.Tensor], free: Mapping[str, frozenset[int]]) -> None:
        self.shapes = ShapeEnv(allow_scalar_outputs=True, allow_dynamic_output_shape_ops=True)
        self.mode = FakeTensorMode(shape_env=self.shapes, allow_non_fake_inputs=True)
        self.tensors = {name: self._fake(tensor, free[name]) for name, tensor in examples.items()}

    def _fake(self, tensor: torch.Tensor, free: frozenset[int]) -> torch.Tensor:
        kinds = [DimDynamic.DUCK if dim in free else DimDynamic.STATIC for dim in range(tensor.dim())]
        context: Any = StatelessSymbolicContext(dynamic_sizes=kinds)
        return self.mode.from_tensor(tensor.detach(), symbolic_context=context)

    @contextmanager
    def active(self) -> Iterator[None]:
        """Within the block, new tensors are fake too."""
        with self.mode, enable_python_dispatcher():
            yield

    def guards(self) -> list[str]:
        """What the run assumed about sizes, as Python expressions over `L["t0"]`, `L["t1"]`, ... for the inputs."""
        placeholders: list[Any] = list(self.tensors.values())
        code = self.shapes.produce_guards_expression(placeholders, ignore_static=False) or "True"
        # Layout in memory does not change what a graph computes, and torch.compile cannot read offsets.
        return [each for each in code.split(" and ") if "storage_offset" not in each and "stride" not in each]


def replace_weights(model: nn.Module, mode: FakeTensorMode | None = None) -> None:
    """Put fake tensors in the place of the model's weights; ties stay ties. `preserved(model)` undoes it.

    Weights on the meta device become fake CPU tensors, so that a capture behaves as on a CPU, constants made in
    forward included, and allocates nothing. Without a mode only those are replaced.
    """
    every = mode is not None
    mode = mode or FakeTensorMode(allow_non_fake_inputs=True)
    made: dict[int, torch.Tensor] = {}
    for module in model.modules():
        for tensors in (module._parameters, module._buffers):
            for name, tensor in tensors.items():
                if tensor is None or not (every or tensor.is_meta):
                    continue
                if id(tensor) not in made:
                    made[id(tensor)] = _fake_weight(tensor, mode)
                tensors[name] = made[id(tensor)]  # type: ignore[assignment]


def _fake_weight(tensor: torch.Tensor, mode: FakeTensorMode) -> torch.Tensor:
    if not tensor.is_meta:
        return mode.from_tensor(tensor, static_shapes=True)
    with mode:
        fake = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="cpu")
    return nn.Parameter(fake, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else fake


def off_meta(inputs: Any) -> Any:
    """Example inputs with tensors on the meta device replaced by zeros on the CPU."""

    def real(tensor: torch.Tensor) -> torch.Tensor:
        return torch.zeros(tensor.shape, dtype=tensor.dtype) if tensor.is_meta else tensor

    return trees.map_tensors(real, inputs)


def constant_of(tensor: torch.Tensor) -> torch.Tensor | None:
    """The value of a tensor that no recorded call made; None when it is fake and has none."""
    return tensor.constant if isinstance(tensor, FakeTensor) else tensor


def recurrent_output(module: nn.Module, args: tuple[Any, ...]) -> Any:
    """What a recurrent layer returns for a fake input; None for anything else.

    torch's own rule for fake tensors loops over time, which would fix the length.
    """
    x = args[0] if args else None
    if not isinstance(module, nn.RNNBase) or not isinstance(x, FakeTensor):
        return None
    directions = 2 if module.bidirectional else 1
    batch = [x.shape[0 if module.batch_first else 1]] if x.dim() == 3 else []
    size = module.proj_size or module.hidden_size
    learns = torch.is_grad_enabled() and any(parameter.requires_grad for parameter in module.parameters())
    sizes = [(*x.shape[:-1], size * directions), (module.num_layers * directions, *batch, size)]
    if isinstance(module, nn.LSTM):
        sizes.append((module.num_layers * directions, *batch, module.hidden_size))
    y, *state = [x.new_empty(shape).requires_grad_(learns) for shape in sizes]
    return y, tuple(state) if isinstance(module, nn.LSTM) else state[0]


class Sizes:
    """Nodes that compute traced sizes out of the sizes of inputs."""

    def __init__(self, graph: fx.Graph) -> None:
        self.graph = graph
        self._known: dict[Any, fx.Node | tuple[fx.Node, int]] = {}

    def add_input(self, node: fx.Node, tensor: torch.Tensor) -> None:
        """The symbols in an input's shape are read off it, when they are first needed."""
        for dim, size in enumerate(tensor.shape):
            if isinstance(size, torch.SymInt):
                self._known.setdefault(size.node.expr, (node, dim))

    def add_value(self, value: Any, node: fx.Node) -> None:
        """A number that a call read out of a tensor, such as `.item()`."""
        if value.node.expr.is_Symbol:
            self._known.setdefault(value.node.expr, node)

    def are_new(self, values: list[Any]) -> bool:
        """True when some value is a symbol that no node gives yet."""
        return any(isinstance(v, SYMBOLIC) and v.node.expr.is_Symbol and v.node.expr not in self._known for v in values)

    def node_of(self, value: Any) -> Any:
        """The node that computes a traced size, or the number if it turned out to be one."""
        return self._expression(value.node.expr)

    def _expression(self, expression: Any) -> Any:
        known = self._known.get(expression)
        if isinstance(known, fx.Node):
            return known
        if known is not None:
            placeholder, dim = known
            with at_front(self.graph):
                node = self.graph.call_method("size", (placeholder, dim))
            self._known[expression] = node
            return node
        if expression.is_Boolean and not expression.args:
            return bool(expression)
        if expression.is_number:
            return int(expression) if expression.is_integer else float(expression)
        name = expression.func.__name__
        if expression.is_Symbol or name not in _UNARY.keys() | _FUNCTIONS.keys():
            raise CaptureError(f"a size depends on {expression}, which cannot be recorded")
        first, *rest = [self._expression(argument) for argument in expression.args]
        if name in _UNARY:
            return self._call(_UNARY[name], first)
        function = _FUNCTIONS[name]
        for other in rest:
            first = self._call(function, first, other)
        return first

    def _call(self, function: Callable[..., Any], *args: Any) -> Any:
        if not any(isinstance(argument, fx.Node) for argument in args):
            return function(*args)
        return self.graph.call_function(function, args)


_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "Add": operator.add,
    "Mul": operator.mul,
    "Pow": operator.pow,
    "PowByNatural": operator.pow,
    "FloorDiv": operator.floordiv,
    "CleanDiv": operator.floordiv,
    "IntTrueDiv": operator.truediv,
    "FloatTrueDiv": operator.truediv,
    "Mod": operator.mod,
    "PythonMod": operator.mod,
    "Max": torch.sym_max,
    "Min": torch.sym_min,
    "FloatPow": operator.pow,
}
_UNARY: dict[str, Callable[..., Any]] = {
    "ToFloat": torch.sym_float,
    "FloorToInt": math.floor,
    "CeilToInt": math.ceil,
    "TruncToInt": int,
    "RoundToInt": round,
    "OpaqueUnaryFn_sqrt": math.sqrt,
    "OpaqueUnaryFn_log": math.log,
    "OpaqueUnaryFn_log2": math.log2,
    "OpaqueUnaryFn_exp": math.exp,
    "Abs": abs,
}

"""`OpArguments`: what a rule can ask about the arguments of an op: parameters of a module, numbers, constants."""

from __future__ import annotations

import torch
import torch.fx as fx

from abcfx.rules.builder import DagBuilder
from abcfx.rules.extents import ConstantTensor, ModuleAttribute, Number, ScalarArgument
from abcfx.rules.values import Value
from abcfx.rules.weights import is_weight, module_parameter


class OpArguments:
    """One op of the traced graph with its arguments, as a rule asks for them.

    Attributes:
        at: the fx node of the op.
        disregarded: tensors of which the rule has said that they do not matter to the result.
    """

    def __init__(self, builder: DagBuilder, at: fx.Node, path: str = "", is_inside: bool = False) -> None:
        """Make the `Op`, by whose methods a rule describes an op of the traced graph, for the op at an fx node.

        Args:
            builder: holds the layer DAG, to which the rule adds nodes.
            at: the fx node of the op.
            path: module path of the op.
            is_inside: whether the op is one of those that a custom autograd.Function runs; `at` is then the node of
                that function, whose arguments are not those of the op.
        """
        self.at = at
        self.disregarded: list[object] = []
        self._builder = builder
        self._path = path
        self._is_inside = is_inside

    def parameter(self, owner: torch.nn.Module, name: str) -> Value | None:
        """Return a parameter of the called module, or of one inside it, as a `Value` (a record of it), or None."""
        return module_parameter(self._builder, owner, name, self.at)

    def attribute(self, key: str) -> Number:
        """Return a number that the called module holds as attribute `key`, as a Number that may change with width."""
        return Number(((ModuleAttribute(self.at, key), 1.0),))

    def scalar(self, *keys: int | str) -> Number:
        """Return a Python number among the op's arguments, as a Number that may change with width.

        Args:
            keys: its position among the op's arguments and its keyword; the first that is given counts.
        """
        given = {*range(len(self.at.args)), *self.at.kwargs}
        key = next((key for key in keys if key in given), None)
        return Number() if self._is_inside or key is None else Number(((ScalarArgument(self.at, key), 1.0),))

    def number(self, value: object, *keys: int | str) -> Number:
        """Return an argument of an op as a Number that may change with width.

        It was computed in the graph, or is a Python number among the op's arguments, found under one of `keys`.
        """
        if isinstance(value, Number):
            return value
        held = self.constant_number(value) if isinstance(value, Value) else None
        return self.scalar(*keys) if held is None else held

    def constant_number(self, x: Value) -> Number | None:
        """Return a constant tensor of one entry as a number that may change with width; None for any other tensor."""
        if not x.is_constant or x.at is None or x.shape is None or any(size != 1 for size in x.shape):
            return None
        return Number(((ConstantTensor(x.at), 1.0),))

    def is_weight(self, x: Value) -> bool:
        """Whether a tensor is a parameter, or computed from parameters and constants alone."""
        return is_weight(self._builder, x)

    def disregard(self, *values: object) -> None:
        """Declare that tensors do not matter to the op's result, as in `x.type_as(y)` the entries of y do not.

        Without it, a rule that makes its result of some of its arguments alone is refused.
        """
        self.disregarded.extend(values)

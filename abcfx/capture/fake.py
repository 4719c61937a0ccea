"""Fake tensors: tensors with a shape and without values, on which a model runs at no cost.

torch has no public import for `FakeTensorMode`; `ShapeEnv` is documented under torch.fx.experimental.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TypeVar, cast

import torch
from torch import nn
from torch._dispatch.python import enable_python_dispatcher
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensor, FakeTensorMode
from torch.fx.experimental.symbolic_shapes import (
    DimDynamic,
    GuardOnDataDependentSymNode,
    ShapeEnv,
    StatelessSymbolicContext,
)

from abcfx.support import trees

# The errors of fake tensors when Python asks for a value.
VALUE_ERRORS = (GuardOnDataDependentSymNode, DataDependentOutputException)

_Inputs = TypeVar("_Inputs")


class FakeInputs:
    """Fake copies of example inputs (a shape and no values), in which symbols stand for sizes that stay open.

    Args:
        examples: the inputs by name.
        free: for each input the dims that get a symbol; the others keep the size that they have.

    Attributes:
        shapes: torch's record of the symbols and of what was assumed about them.
        mode: the torch mode that makes tensors fake.
        tensors: the fake inputs by name.
    """

    def __init__(self, examples: Mapping[str, torch.Tensor], free: Mapping[str, frozenset[int]]) -> None:
        """Make a fake copy, a tensor with a shape and no values, of each example input.

        Args:
            examples: the inputs by name.
            free: for each input the dims that get a symbol; the others keep the size that they have.
        """
        self.shapes = ShapeEnv(allow_scalar_outputs=True, allow_dynamic_output_shape_ops=True)
        self.mode = FakeTensorMode(shape_env=self.shapes, allow_non_fake_inputs=True)
        self.tensors = {name: self._fake(tensor, free[name]) for name, tensor in examples.items()}

    def _fake(self, tensor: torch.Tensor, free: frozenset[int]) -> torch.Tensor:
        """Return a fake copy (a shape, no values) of a tensor, with symbols for the sizes of the dims in `free`.

        Equal sizes share a symbol.
        """
        kinds = [DimDynamic.DUCK if dim in free else DimDynamic.STATIC for dim in range(tensor.dim())]
        context: StatelessSymbolicContext[..., object] = StatelessSymbolicContext(dynamic_sizes=kinds)
        return self.mode.from_tensor(tensor.detach(), symbolic_context=context)

    @contextmanager
    def active(self) -> Iterator[None]:
        """Make every new tensor within the block a fake one (with a shape and no values), too."""
        with self.mode, enable_python_dispatcher():
            yield

    def guards(self) -> list[str]:
        """Return what a run on fake inputs assumed about sizes, as Python conditions.

        They are conditions on the inputs `L["t0"]`, `L["t1"]`, ... in order.
        """
        inputs = cast("list[FakeTensor]", list(self.tensors.values()))
        code = self.shapes.produce_guards_expression(inputs, ignore_static=False) or "True"
        # Layout in memory does not change what a graph computes, and torch.compile cannot read offsets.
        return [each for each in code.split(" and ") if "storage_offset" not in each and "stride" not in each]


def replace_weights(model: nn.Module, mode: FakeTensorMode | None = None) -> None:
    """Put fake tensors (shapes without values) in the place of the model's weights; tied weights stay tied.

    `preserved(model)` undoes it. Weights on the meta device become fake CPU tensors, so that a capture behaves as on a
    CPU, constants made in forward included, and allocates nothing.

    Args:
        model: the model; its parameters and buffers are replaced in place.
        mode: the mode to which the fake tensors belong. Without one, only weights on the meta device are replaced.
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
    """Return a fake tensor of a weight's shape, strides and dtype; for a weight on the meta device, one on the CPU."""
    if not tensor.is_meta:
        return mode.from_tensor(tensor, static_shapes=True)
    with mode:
        fake = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="cpu")
    return nn.Parameter(fake, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else fake


def off_meta(inputs: _Inputs) -> _Inputs:
    """Return example inputs with zeros on the CPU in the place of tensors on the meta device."""

    def real(tensor: torch.Tensor) -> torch.Tensor:
        """Return zeros on the CPU for a tensor on the meta device; any other tensor as it is."""
        return torch.zeros(tensor.shape, dtype=tensor.dtype) if tensor.is_meta else tensor

    return trees.map_tensors(real, inputs)


def is_fake(tensor: torch.Tensor) -> bool:
    """Whether a tensor has a shape and no values."""
    return isinstance(tensor, FakeTensor)


def constant_of(tensor: torch.Tensor) -> torch.Tensor | None:
    """Return the value of a tensor that no recorded call made; None for a fake tensor, which has no value."""
    return tensor.constant if isinstance(tensor, FakeTensor) else tensor


def recurrent_output(module: nn.Module, args: tuple[object, ...]) -> tuple[object, ...] | None:
    """Return the output of nn.LSTM, nn.GRU or nn.RNN for a fake input; None for any other module or input.

    torch's own rule for fake tensors loops over time, which would fix the length of the sequence.
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

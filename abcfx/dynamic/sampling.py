"""Which rows of a weight and which of its inputs are looked at, so that measuring is cheap and the same every time."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import fx, nn
from torch.nn.modules.conv import _ConvNd

from abcfx.capture import CapturedGraph
from abcfx.dag.layer_dag import LayerDag
from abcfx.rules import Layer
from abcfx.rules.extents import ParameterDim
from abcfx.rules.values import shape_of

KEPT_TOKENS, MOST_ROWS, FEWEST_ROWS, ROWS_SHARE = 32, 64, 16, 1 / 64
KEPT_MATRICES = 8


@dataclass(frozen=True)
class Sampled:
    """One weight op: where its input comes from, which rows of its weight are looked at.

    Attributes:
        node: in the layer DAG.
        operand: fx node that its input comes out of.
        fixed: its input is computed from the model's inputs alone, and never changes.
        matrices: dims of the parameter that count matrices, each with inputs of its own (experts), and which are kept.
        out, into: dims of the parameter that run along outputs, and along what is summed.
        paired, over: dims of the input for `matrices` and `into`, counted from the last.
        rows: of every matrix, as an index into its dims `out`; None for all of them.
        fan_in: number of terms of a sum.
        kernel: size of the window of a convolution.
    """

    node: str
    parameter: str
    operand: fx.Node
    fixed: bool
    matrices: tuple[int, ...]
    out: tuple[int, ...]
    into: tuple[int, ...]
    paired: tuple[int, ...]
    over: tuple[int, ...]
    rows: torch.Tensor | None
    fan_in: int
    kernel: tuple[int, ...] = ()

    def weight(self, parameter: torch.Tensor) -> torch.Tensor:
        """(rows, fan_in) of the parameter, or (matrices, rows, fan_in); a copy unless `rows` is None."""
        moved = parameter.detach()
        if self.out != (0,) or self.matrices:
            moved = moved.permute(*self.matrices, *self.out, *self.into)
        if moved.ndim != 2:
            sizes = moved.shape[: len(self.matrices)]
            moved = moved.reshape(*([sizes.numel()] if sizes else []), -1, self.fan_in)
        if self.matrices:
            moved = moved[spread(moved.shape[0], KEPT_MATRICES, moved.device)]
        return moved if self.rows is None else moved.index_select(-2, self.rows.to(moved.device))

    def input(self, tensor: torch.Tensor) -> torch.Tensor | None:
        """At most `KEPT_TOKENS` rows of (..., fan_in) of what goes in, evenly spread; None where it does not fit.

        With `matrices`, as many for all of them together: (matrices, rows, fan_in).
        """
        tensor = tensor.detach()
        if self.kernel:
            return self._patches(tensor)
        last = (*self.paired, *self.over)
        if (
            -min(last) > tensor.ndim
            or not tensor.numel()
            or math.prod(tensor.shape[i] for i in self.over) != self.fan_in
        ):
            return None
        if self.over == tuple(range(-len(self.over), 0)) and not self.paired:
            flat = tensor.reshape(-1, self.fan_in)
            return (
                flat if len(flat) <= KEPT_TOKENS else flat.index_select(0, spread(len(flat), KEPT_TOKENS, flat.device))
            )
        moved = tensor.movedim(self.over, tuple(range(-len(self.over), 0)))
        if not self.paired:
            flat = moved.reshape(-1, self.fan_in)
            return flat[spread(len(flat), KEPT_TOKENS, flat.device)]
        first = tuple(range(len(self.paired)))
        kept = [i - tensor.ndim if i >= 0 else i for i in self.paired]
        order = [*kept, *(i for i in range(-tensor.ndim, 0) if i not in last), *self.over]
        by_matrix = tensor.permute(order).flatten(0, len(first) - 1)
        by_matrix = by_matrix.reshape(len(by_matrix), -1, self.fan_in)
        by_matrix = by_matrix[spread(len(by_matrix), KEPT_MATRICES, tensor.device)]
        count = max(1, KEPT_TOKENS // len(by_matrix))
        return by_matrix[:, spread(by_matrix.shape[1], count, tensor.device)]

    def _patches(self, tensor: torch.Tensor) -> torch.Tensor | None:
        """What single output pixels of a convolution see, at stride 1; of its first group where there are several."""
        channels = self.fan_in // math.prod(self.kernel)
        spatial = len(self.kernel)
        if tensor.ndim != spatial + 2 or tensor.shape[1] < channels:
            return None
        tensor = tensor[:, :channels]
        for i, size in enumerate(self.kernel):
            dim = 2 + i
            if tensor.shape[dim] < size:
                tensor = nn.functional.pad(tensor, [0, 0] * (spatial - 1 - i) + [0, size - tensor.shape[dim]])
            tensor = tensor.unfold(dim, size, 1)
        places = (tensor.shape[0], *tensor.shape[2 : 2 + spatial])
        index = torch.unravel_index(spread(math.prod(places), KEPT_TOKENS, tensor.device), places)
        patches = tensor.movedim(1, 1 + spatial)[index]
        if self.into[0] == 0:  # a transposed one meets its kernel backwards
            patches = patches.flip(tuple(range(2, 2 + spatial)))
        return patches.flatten(1)


def sample_layers(
    captured: CapturedGraph, dag: LayerDag, parameters: Mapping[str, torch.Tensor], whole: bool
) -> tuple[list[Sampled], list[str]]:
    """Every weight op that sums over dims of its parameter, and those whose input cannot be seen from outside."""
    seen, left_out = [], []
    for node, layer in dag.layers():
        sampled = _sampled(captured, dag, node, layer, parameters[layer.parameter], whole)
        if sampled is not None:
            seen.append(sampled)
        elif any(isinstance(dim, ParameterDim) for dim in layer.fan_in):
            left_out.append(node)
    return seen, left_out


def _sampled(
    captured: CapturedGraph, dag: LayerDag, node: str, layer: Layer, parameter: torch.Tensor, whole: bool
) -> Sampled | None:
    data = dag.graph.nodes[node]
    operand = data["operand"]
    into = tuple(dim.index for dim in layer.fan_in if isinstance(dim, ParameterDim))
    # a tensor that is made inside the op cannot be seen; one without `over` changes its order from run to run
    hidden = operand is None or operand is data["fx_node"] or data["over"] == ()
    if hidden or not into or len(into) != len(layer.fan_in):
        return None
    paired = dict(data["paired"])
    matrices = tuple(i for i in paired if parameter.shape[i] > 1)
    out = tuple(i for i in range(parameter.ndim) if i not in (*into, *matrices))
    kernel = tuple(parameter.shape[i] for i in into[1:]) if _is_convolution(captured, data["fx_node"]) else ()
    fan_in = math.prod(parameter.shape[i] for i in into)
    count = math.prod(parameter.shape[i] for i in out)
    kept = min(MOST_ROWS, max(FEWEST_ROWS, int(count * ROWS_SHARE)))
    if kernel and (shape := shape_of(operand)) and len(shape) > 1:  # rows of the group whose inputs are kept
        count = max(1, count // max(1, int(shape[1]) * math.prod(kernel) // fan_in))
    return Sampled(
        node,
        layer.parameter,
        operand,
        _is_constant(operand),
        matrices,
        out,
        into,
        tuple(paired[i] for i in matrices),
        data["over"] or tuple(range(-len(into), 0)),
        None if whole and not kernel else spread(count, count if whole else kept),
        fan_in,
        kernel,
    )


def _is_constant(node: fx.Node) -> bool:
    """Whether functions alone lead from the model's inputs to it."""
    waiting, seen = [node], set[fx.Node]()
    while waiting:
        at = waiting.pop()
        if at.op not in ("placeholder", "call_function", "call_method"):
            return False
        seen.add(at)
        waiting += [each for each in at.all_input_nodes if each not in seen]
    return True


def _is_convolution(captured: CapturedGraph, node: fx.Node) -> bool:
    if node.op == "call_module":
        return isinstance(captured.module.get_submodule(str(node.target)), _ConvNd)
    return "conv" in str(getattr(node.target, "__name__", node.target))


def spread(size: int, count: int, device: torch.device | None = None) -> torch.Tensor:
    """`count` indices below `size`, the same ones every time, irregular enough to meet no period."""
    if size <= count:
        return torch.arange(size, device=device)
    generator = torch.Generator().manual_seed(size)
    return torch.randperm(size, generator=generator)[:count].sort().values.to(device or "cpu")

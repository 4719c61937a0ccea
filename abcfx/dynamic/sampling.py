"""The rows of a weight and the inputs that are measured: few, so that measuring is cheap, and the same ones each time.

Shapes: a weight is brought to (rows, fan_in) and an input to (samples, fan_in); with stacked matrices (experts) both
have a leading dim that counts the matrices.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
from torch import fx, nn

from abcfx.capture import CapturedGraph
from abcfx.dag.layer_dag import LayerDag
from abcfx.rules import Layer
from abcfx.rules.extents import ParameterDim
from abcfx.rules.values import shape_of

KEPT_TOKENS = 32  # inputs of a layer, of all its matrices together
KEPT_MATRICES = 8
FEWEST_ROWS, MOST_ROWS, SHARE_OF_ROWS = 16, 64, 1 / 64
_CONVOLUTION_MODULES = (
    nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d,
)  # fmt: skip
_CONVOLUTIONS = frozenset(
    {"conv1d", "conv2d", "conv3d", "convolution", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d"}
)


@dataclass(frozen=True)
class SampledLayer:
    """One layer whose alignment is measured: where its input comes from, and which rows of its weight are looked at.

    Alignment is 1/2 if updates and inputs (the factors of dW x) are independent, and 1 if they line up fully.

    Attributes:
        node: name of the layer in the graph of the model's layers.
        parameter: name of its weight.
        operand: fx node whose result is the layer's input.
        fixed: whether the input is computed from the model's inputs alone, so that it never changes.
        matrices: dims of the parameter that count stacked matrices, each with inputs of its own (experts).
        out, into: dims of the parameter that run along outputs, and dims that are summed over.
        paired, over: dims of the input that belong to `matrices` and to `into`, counted from the last.
        rows: indices of the rows that are looked at, which run along `out`; None for all rows.
        fan_in: number of terms of each sum.
        kernel: window size of a convolution, () for other layers.
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
        """Return the measured rows of the layer's weight, (rows, fan_in), with a leading dim for stacked matrices.

        Args:
            parameter: the whole weight, in the shape that the model has.
        """
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
        """Return at most 32 rows of the layer's input, (rows, fan_in), spread over tokens; None if its shape is unfit.

        For stacked matrices (experts) a leading dim counts them, and they share the 32 rows.

        Args:
            tensor: the whole input, as the model computed it.
        """
        tensor = tensor.detach()
        if self.kernel:
            return self._patches(tensor)
        if -min(*self.paired, *self.over, 0) > tensor.ndim or not tensor.numel():
            return None
        if math.prod(tensor.shape[dim] for dim in self.over) != self.fan_in:
            return None
        if self.paired:
            return self._by_matrix(tensor)
        last = tuple(range(-len(self.over), 0))
        moved = tensor if self.over == last else tensor.movedim(self.over, last)
        flat = moved.reshape(-1, self.fan_in)
        return flat if len(flat) <= KEPT_TOKENS else flat.index_select(0, spread(len(flat), KEPT_TOKENS, flat.device))

    def _by_matrix(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return (matrices, rows, fan_in): for at most 8 of a stack of matrices (experts), rows of the input of each.

        Args:
            tensor: the layer's whole input.
        """
        paired = [dim - tensor.ndim if dim >= 0 else dim for dim in self.paired]
        others = [dim for dim in range(-tensor.ndim, 0) if dim not in (*self.paired, *self.over)]
        by_matrix = tensor.permute(*paired, *others, *self.over).flatten(0, len(self.paired) - 1)
        by_matrix = by_matrix.reshape(len(by_matrix), -1, self.fan_in)
        by_matrix = by_matrix[spread(len(by_matrix), KEPT_MATRICES, tensor.device)]
        count = max(1, KEPT_TOKENS // len(by_matrix))
        return by_matrix[:, spread(by_matrix.shape[1], count, tensor.device)]

    def _patches(self, tensor: torch.Tensor) -> torch.Tensor | None:
        """Return at most 32 patches, (patches, fan_in), of a convolution's input: what single output pixels see.

        The stride is taken as 1, and only the channels of the first group count. None if the input's shape does not
        fit.
        """
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
        if self.into[0] == 0:  # a transposed convolution applies its kernel backwards
            patches = patches.flip(tuple(range(2, 2 + spatial)))
        return patches.flatten(1)


def sample_layers(
    captured: CapturedGraph,
    dag: LayerDag,
    parameters: Mapping[str, torch.Tensor],
    whole: bool,
    segmented: Collection[str] = (),
) -> tuple[list[SampledLayer], list[str]]:
    """Choose, for every layer of a model, which rows of its weight and which input are measured.

    Args:
        captured: the model's graphs.
        dag: the graph of its layers.
        parameters: parameters of the model by name.
        whole: measure every row of a weight, not a sample of rows.
        segmented: names of weights whose columns have several multipliers, since their input is a concatenation; they
            are left out.

    Returns:
        (layers whose inputs can be seen in the graph, names of the layers whose inputs cannot).
    """
    seen: list[SampledLayer] = []
    left_out: list[str] = []
    for node, layer in dag.layers():
        if layer.parameter in segmented:
            left_out.append(node)
            continue
        sampled = _sampled(captured, dag, node, layer, parameters[layer.parameter], whole)
        if sampled is not None:
            seen.append(sampled)
        elif any(isinstance(dim, ParameterDim) for dim in layer.fan_in):
            left_out.append(node)
    return seen, left_out


def _sampled(
    captured: CapturedGraph, dag: LayerDag, node: str, layer: Layer, parameter: torch.Tensor, whole: bool
) -> SampledLayer | None:
    """Choose the input and the rows of one layer that are measured; None if its input cannot be seen in the graph.

    Layers that sum over no dim of their own parameter, such as lookups, give None as well.

    Args:
        captured: the model's graphs.
        dag: the graph of its layers.
        node: name of the layer there.
        layer: what is known of the layer: its parameter and the dims that it sums over.
        parameter: the layer's weight.
        whole: measure every row, not a sample of rows.
    """
    used = dag.node(node)
    operand = used.operand
    into = tuple(dim.index for dim in layer.fan_in if isinstance(dim, ParameterDim))
    # A tensor made inside the op cannot be seen from outside; one without `over` changes its order from run to run.
    if operand is None or operand is used.fx_node or used.over == ():
        return None
    if not into or len(into) != len(layer.fan_in):
        return None
    paired = dict(used.paired)
    matrices = tuple(i for i in paired if parameter.shape[i] > 1)
    out = tuple(i for i in range(parameter.ndim) if i not in (*into, *matrices))
    kernel = tuple(parameter.shape[i] for i in into[1:]) if _is_convolution(captured, used.fx_node) else ()
    fan_in = math.prod(parameter.shape[i] for i in into)
    count = math.prod(parameter.shape[i] for i in out)
    few = min(MOST_ROWS, max(FEWEST_ROWS, int(count * SHARE_OF_ROWS)))
    if kernel and (shape := shape_of(operand)) and len(shape) > 1:  # the rows of the group whose inputs are kept
        count = max(1, count // max(1, int(shape[1]) * math.prod(kernel) // fan_in))
    return SampledLayer(
        node,
        layer.parameter,
        operand,
        _is_constant(operand),
        matrices,
        out,
        into,
        tuple(paired[i] for i in matrices),
        used.over or tuple(range(-len(into), 0)),
        None if whole and not kernel else spread(count, count if whole else few),
        fan_in,
        kernel,
    )


def _is_constant(node: fx.Node) -> bool:
    """Whether a tensor of a graph is computed from the model's inputs by functions alone, without parameters."""
    waiting, seen = [node], set[fx.Node]()
    while waiting:
        at = waiting.pop()
        if at.op not in ("placeholder", "call_function", "call_method"):
            return False
        seen.add(at)
        waiting += [each for each in at.all_input_nodes if each not in seen]
    return True


def _is_convolution(captured: CapturedGraph, node: fx.Node) -> bool:
    """Whether an fx node calls a convolution, as a module, a function or an ATen op."""
    if node.op == "call_module":
        return isinstance(captured.module.get_submodule(str(node.target)), _CONVOLUTION_MODULES)
    name = str(getattr(node.target, "__name__", node.target))
    return name.partition(".")[0] in _CONVOLUTIONS  # an ATen op's name ends in that of its overload


def spread(size: int, count: int, device: torch.device | None = None) -> torch.Tensor:
    """Return `count` sorted indices below `size` (all if there are fewer), the same ones at every call.

    They are drawn at random from a seed, so that they do not fall in step with a period of the data.
    """
    if size <= count:
        return torch.arange(size, device=device)
    generator = torch.Generator().manual_seed(size)
    return torch.randperm(size, generator=generator)[:count].sort().values.to(device or "cpu")

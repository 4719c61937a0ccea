"""What goes into every weight op on a fixed probe, and samples of weights: all that measuring alignment needs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn
from torch.nn.modules.conv import _ConvNd
from torch.utils import _pytree as pytree

from abcfx.capture import CapturedGraph
from abcfx.dag import build_dag
from abcfx.errors import InvalidInputError
from abcfx.passes import probe_activations
from abcfx.rules import Layer
from abcfx.rules.kinds import ParameterDim

TOKENS, SEQUENCES, SAMPLES = 128, 16, 32
KEPT_TOKENS, MOST_ROWS, FEWEST_ROWS, ROWS_SHARE = 32, 64, 16, 1 / 32


@dataclass(frozen=True)
class Sampled:
    """One weight op: where its input comes from and which rows of its weight are looked at.

    `out` and `into` are the dims of the parameter that run along outputs and along what is summed; `rows` indexes the
    former, flattened; `fan_in` is the number of terms of a sum.
    """

    node: str
    parameter: str
    operand: fx.Node
    out: tuple[int, ...]
    into: tuple[int, ...]
    rows: torch.Tensor
    fan_in: int
    kernel: tuple[int, ...] = ()

    def weight(self, parameter: torch.Tensor) -> torch.Tensor:
        """(rows, fan_in) of the parameter."""
        moved = parameter.detach().permute(*self.out, *self.into)
        index = torch.unravel_index(self.rows.to(parameter.device), moved.shape[: len(self.out)])
        return moved[index].flatten(1)

    def input(self, tensor: torch.Tensor) -> torch.Tensor | None:
        """At most `KEPT_TOKENS` rows of (..., fan_in) of what goes in, evenly spread; None where it does not fit."""
        tensor = tensor.detach()
        if self.kernel:
            return self._patches(tensor)
        dims, size = 0, 1
        while size < self.fan_in and dims < tensor.ndim:
            dims += 1
            size *= tensor.shape[-dims]
        if size != self.fan_in or not tensor.numel():
            return None
        flat = tensor.reshape(-1, self.fan_in)
        return flat[_spread(flat.shape[0], KEPT_TOKENS, tensor.device)]

    def _patches(self, tensor: torch.Tensor) -> torch.Tensor | None:
        """What single output pixels of a convolution see, at stride 1; of one group where there are several."""
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
        index = torch.unravel_index(_spread(math.prod(places), KEPT_TOKENS, tensor.device), places)
        return tensor.movedim(1, 1 + spatial)[index].flatten(1)


class Probe:
    """Runs the captured model on a few fixed samples up to its last weight op; no gradient, no dropout.

    Args:
        captured: the transformed model's graphs.
        batch: as the model is called: a tensor, a tuple of arguments, or a dict of keyword arguments.
        max_tokens: of a batch of sequences that many tokens are run, from at least 16 sequences if there are so many.
    """

    def __init__(self, captured: CapturedGraph, batch: Any, max_tokens: int = TOKENS) -> None:
        self._prepare(captured)
        self.flat = self._chosen(_flat(self.graph, batch), max_tokens)

    @classmethod
    def of_flat(cls, captured: CapturedGraph, flat: list[Any]) -> Probe:
        """With the inputs of an earlier probe (its `flat`)."""
        new = cls.__new__(cls)
        new._prepare(captured)
        new.flat = flat
        return new

    flat: list[Any]

    def _prepare(self, captured: CapturedGraph) -> None:
        module = captured.module
        self.graph = module.graph if module.eval_graph is None else module.eval_graph
        dag = build_dag(captured, self.graph, unknown="report")
        parameters = dict(captured.model.named_parameters())
        self.layers: list[Sampled] = []
        self.left_out: list[str] = []
        for node, layer in dag.layers():
            data = dag.graph.nodes[node]
            slides = _is_convolution(captured, data["fx_node"])
            # a tensor that is made inside the op cannot be seen
            operand = None if data["operand"] is data["fx_node"] else data["operand"]
            sampled = _sampled(node, layer, operand, parameters[layer.parameter], slides)
            if sampled is not None:
                self.layers.append(sampled)
            elif any(isinstance(dim, ParameterDim) for dim in layer.fan_in):
                self.left_out.append(node)
        operands = list(dict.fromkeys(layer.operand for layer in self.layers))
        self._position = {operand: i for i, operand in enumerate(operands)}
        self._module = probe_activations(module, self.graph, operands)
        self.parameters = parameters

    def _chosen(self, flat: list[Any], max_tokens: int) -> list[Any]:
        """A part of the batch: short pieces of many sequences where the graph takes them, else whole samples."""
        sequences = next((t for t in flat if isinstance(t, torch.Tensor) and t.ndim >= 2 and not _is_float(t)), None)
        count = SAMPLES if sequences is None else SEQUENCES
        some = [t[:count].clone() if isinstance(t, torch.Tensor) and t.ndim else t for t in flat]
        if sequences is None:
            return some
        length = max(1, max_tokens // min(count, sequences.shape[0]))

        def cut(tensor: Any) -> Any:
            along = isinstance(tensor, torch.Tensor) and tensor.ndim >= 2 and tensor.shape[1] == sequences.shape[1]
            return tensor[:, :length].contiguous() if along else tensor

        try:
            short = [cut(tensor) for tensor in some]
            _check_guards(self.graph, short)
            self._run(short)
            return short
        except Exception:  # fixed to a length: whole sequences, then
            return some

    def _run(self, flat: list[Any]) -> tuple[torch.Tensor, ...]:
        training = self._module.training
        try:
            self._module.eval()
            with torch.no_grad():
                results: tuple[torch.Tensor, ...] = self._module(*flat)
                return results
        finally:
            self._module.train(training)

    def inputs(self) -> dict[str, torch.Tensor]:
        """Weight op -> a sample of what goes in now, (tokens, fan_in)."""
        results = self._run(self.flat)
        found = {layer.node: layer.input(results[self._position[layer.operand]]) for layer in self.layers}
        return {node: tensor for node, tensor in found.items() if tensor is not None}

    def weights(self) -> dict[str, torch.Tensor]:
        """Weight op -> a sample of its weight now, (rows, fan_in)."""
        return {layer.node: layer.weight(self.parameters[layer.parameter]) for layer in self.layers}


def _is_convolution(captured: CapturedGraph, node: fx.Node) -> bool:
    if node.op == "call_module":
        return isinstance(captured.module.get_submodule(str(node.target)), _ConvNd)
    return "conv" in str(getattr(node.target, "__name__", node.target))


def _sampled(node: str, layer: Layer, operand: fx.Node | None, parameter: torch.Tensor, slides: bool) -> Sampled | None:
    into = tuple(dim.index for dim in layer.fan_in if isinstance(dim, ParameterDim))
    if operand is None or not into or len(into) != len(layer.fan_in):
        return None
    out = tuple(i for i in range(parameter.ndim) if i not in into)
    count = math.prod(parameter.shape[i] for i in out)
    fan_in = math.prod(parameter.shape[i] for i in into)
    rows = min(count, max(FEWEST_ROWS, min(MOST_ROWS, int(count * ROWS_SHARE))))
    kernel = tuple(parameter.shape[i] for i in into[1:]) if slides else ()
    return Sampled(node, layer.parameter, operand, out, into, _spread(count, rows), fan_in, kernel)


def _spread(size: int, count: int, device: torch.device | None = None) -> torch.Tensor:
    """`count` indices below `size`, the same ones every time, irregular enough to meet no period."""
    if size <= count:
        return torch.arange(size, device=device)
    generator = torch.Generator().manual_seed(size)
    return torch.randperm(size, generator=generator)[:count].sort().values.to(device or "cpu")


def _is_float(tensor: torch.Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()


def _flat(graph: fx.Graph, batch: Any) -> list[Any]:
    """The batch as the graph's placeholders take it."""
    signature: Any = getattr(graph._codegen, "signature", None)
    args, kwargs = ((), batch) if isinstance(batch, Mapping) else (batch if isinstance(batch, tuple) else (batch,), {})
    try:
        return list(signature.flatten(signature.bind(*args, **kwargs)))
    except TypeError as error:
        shown = pytree.tree_map_only(torch.Tensor, lambda t: tuple(t.shape), batch)
        raise InvalidInputError(
            f"capture_initial: the model cannot be called with this batch ({shown}): {error}.\n"
            f"  expected: a tensor, a tuple of arguments, or a dict of keyword arguments that the model takes."
        ) from error


def _check_guards(graph: fx.Graph, flat: list[Any]) -> None:
    signature: Any = getattr(graph._codegen, "signature", None)
    if signature.guards is not None:
        signature.guards(flat)

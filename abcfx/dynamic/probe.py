"""Runs the model as it is now on a fixed part of a batch and measures every weight op against what it was at first."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.distributed as distributed
from torch import fx, nn

from abcfx.capture import CapturedGraph
from abcfx.capture.emitted import EmittedModule
from abcfx.dag.layer_dag import build_dag
from abcfx.dynamic.first_weights import FirstWeights
from abcfx.dynamic.measured import Layer, Moments, moments, products_of_many, rms, workable
from abcfx.dynamic.sampling import sample_layers
from abcfx.errors import InvalidInputError
from abcfx.passes import probe_activations
from abcfx.support import trees

TOKENS, SEQUENCES, SAMPLES = 128, 16, 32
SHARE, FEWEST_SAMPLES, MANY_TOKENS = 1 / 4, 4, 8  # of samples that are many tokens each, such as images
_AUTOCASTING = ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)


class Probe:
    """Fixed inputs, the first activations and weights of every layer, and how both stand to those of now.

    The graph is run up to its last weight op, in eval mode, without gradients and autocast, on the live module.

    Args:
        captured: the transformed model's graphs.
        module: what is trained, as `transform` returned it; it may have been sharded by `fully_shard` since.
        first: keeps the first weights.

    Attributes:
        layers: the weight ops; `measured`: those whose inputs fit, in the order of `measure`; `left_out`: the others.
        flat: the inputs, as the graph's placeholders take them.
    """

    def __init__(self, captured: CapturedGraph, module: nn.Module, first: FirstWeights) -> None:
        self.module, self.first = module, first
        self._emitted = captured.module
        self.graph = captured.module.graph if captured.module.eval_graph is None else captured.module.eval_graph
        dag = build_dag(captured, self.graph, unknown="report")
        self.layers, self.left_out = sample_layers(captured, dag, dict(module.named_parameters()), first.whole)
        self.measured = list(self.layers)
        self._owners = {
            name: (module.get_submodule(path), attribute)
            for name, _ in module.named_parameters()
            for path, _, attribute in [name.rpartition(".")]
        }
        operands = list(dict.fromkeys(layer.operand for layer in self.layers))
        self._position = {operand: i for i, operand in enumerate(operands)}
        probe = probe_activations(self._emitted, self.graph, operands).graph_module
        self._forward: Callable[..., tuple[torch.Tensor, ...]] = type(probe).forward
        leaves = [self._emitted.get_submodule(str(n.target)) for n in probe.graph.nodes if n.op == "call_module"]
        self._moded = list(dict.fromkeys(m for leaf in leaves for m in leaf.modules()))
        self.flat: list[Any] = []
        self.inputs: dict[str, torch.Tensor] = {}
        self._sizes: dict[str, tuple[float, float]] = {}
        self._sharded: list[Any] = []

    def take(self, batch: Any, max_tokens: int = TOKENS) -> None:
        """Choose the inputs out of a batch; remember activations and weights as they are.

        Args:
            batch: as the model is called: a tensor, a tuple of arguments, or a dict of keyword arguments.
            max_tokens: of a batch of sequences that many are run, of at least 16 sequences if there are so many.
        """
        with self._live():
            self.flat = self._chosen(_flat(self.graph, batch), max_tokens)
            self.inputs = self._first_inputs()
            parameters = self._parameters()
            self.first.take(self.layers, parameters)
            self._settle(parameters)

    def _settle(self, parameters: Mapping[str, torch.Tensor]) -> None:
        """What follows from the first activations and weights."""
        self.measured = [layer for layer in self.layers if layer.node in self.inputs]
        self.left_out += [layer.node for layer in self.layers if layer.node not in self.inputs]
        self._sizes = {
            layer.node: (rms(workable(self.inputs[layer.node])), rms(workable(w0)))
            for layer, w0 in self.first.weights(self.measured, parameters)
        }

    def _gather(self) -> None:
        for sharded in self._sharded:
            sharded.unshard()

    def _parameters(self) -> dict[str, torch.Tensor]:
        """Parameters by name as they are now: sharding, `.to` and assigning put others in their place."""
        self._gather()  # a module that was called has let go of its weights
        return {name: getattr(owner, attribute) for name, (owner, attribute) in self._owners.items()}

    def measure(self) -> list[tuple[Moments, Moments, Moments]]:
        """Moments of every layer of `measured`."""
        with self._live():
            layers = self._layers(self._run(self.flat))
            if self.first.whole:  # not all of them in memory at once
                found = {node: products_of_many([layer])[0] for node, layer in layers}
            else:
                at_once = dict(layers)
                found = dict(zip(at_once, products_of_many(list(at_once.values())), strict=True))
        return [moments((*self._sizes[layer.node], *found[layer.node])) for layer in self.measured]

    def _layers(self, results: tuple[torch.Tensor, ...]) -> Iterator[tuple[str, Layer]]:
        """Weight op -> its inputs and weights, at first and now."""
        parameters = self._parameters()
        for layer, w0 in self.first.weights(self.measured, parameters):
            z0 = workable(self.inputs[layer.node])
            z = None if layer.fixed else layer.input(results[self._position[layer.operand]])
            w = layer.weight(parameters[layer.parameter])
            yield layer.node, (z0, workable(w0), None if z is None else workable(z), workable(w))

    def state_dict(self) -> dict[str, Any]:
        return {"flat": self.flat, "inputs": dict(self.inputs), "first": self.first.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """What `state_dict` gave, possibly on another device. Raises InvalidInputError for another model's."""
        with self._live():
            parameters = self._parameters()
            self.first.load_state_dict(state["first"], self.layers, parameters)
            device = next(iter(parameters.values())).device
            self.flat = trees.map_tensors(lambda t: t.to(device), list(state["flat"]))
            self.inputs = {node: tensor.to(device) for node, tensor in state["inputs"].items()}
            self._settle(parameters)

    def _first_inputs(self) -> dict[str, torch.Tensor]:
        """Weight op -> a sample of what goes in; one tensor for all that share it, as queries, keys and values do."""
        results = self._run(self.flat)
        found: dict[str, torch.Tensor] = {}
        known: dict[Any, torch.Tensor | None] = {}
        for layer in self.layers:
            key = (layer.operand, layer.fan_in, layer.kernel, layer.over, layer.paired)
            if key not in known:
                sample = layer.input(results[self._position[layer.operand]])
                known[key] = None if sample is None else sample.clone()
            if (tensor := known[key]) is not None:
                found[layer.node] = tensor
        return found

    def _tokens(self, results: tuple[torch.Tensor, ...]) -> int:
        """The largest number of inputs, of all samples together, that a layer gets."""
        channels = {layer.operand: layer.fan_in // math.prod(layer.kernel) for layer in self.layers}
        return max((results[k].numel() // channels[operand] for operand, k in self._position.items()), default=0)

    def _run(self, flat: list[Any]) -> tuple[torch.Tensor, ...]:
        return self._forward(self._emitted, *flat)

    @contextmanager
    def _live(self) -> Iterator[None]:
        """Whole parameters, eval mode, no gradients, no autocast; all as it was afterwards."""
        training = [module for module in self._moded if module.training]
        with torch.no_grad(), ExitStack() as stack:
            for device in _AUTOCASTING:
                if torch.is_autocast_enabled(device):
                    stack.enter_context(torch.autocast(device, enabled=False))
            self._sharded = _sharded(self.module)
            try:
                for module in training:
                    module.training = False
                self._gather()
                if self.module is not self._emitted:
                    _adopt(self._emitted, self.module)
                yield
            finally:
                for module in training:
                    module.training = True
                for sharded in self._sharded:
                    sharded.reshard()

    def _chosen(self, flat: list[Any], max_tokens: int) -> list[Any]:
        """A part of the batch: short pieces of many sequences where the graph takes them, else whole samples.

        Samples that are images or other fields of many tokens: no more than a quarter of the batch.
        """
        sequences = next((t for t in flat if isinstance(t, torch.Tensor) and t.ndim >= 2 and not _is_float(t)), None)
        count = SAMPLES if sequences is None else SEQUENCES
        some = [t[:count].clone() if isinstance(t, torch.Tensor) and t.ndim else t for t in flat]
        if sequences is None:
            size = max((len(t) for t in flat if isinstance(t, torch.Tensor) and t.ndim), default=0)
            share = max(FEWEST_SAMPLES, int(size * SHARE))
            if share < min(size, count) and self._tokens(self._run(some)) >= MANY_TOKENS * min(size, count):
                some = [t[:share].clone() if isinstance(t, torch.Tensor) and t.ndim else t for t in flat]
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


def _adopt(emitted: EmittedModule, model: nn.Module) -> None:
    """Parameters and buffers that `model` itself holds: with `inplace` they are the model's, and may have changed."""
    for name, parameter in model.named_parameters(recurse=False):
        if getattr(emitted, name, None) is not parameter:
            emitted.register_parameter(name, parameter)
    for name, buffer in model.named_buffers(recurse=False):
        if getattr(emitted, name, None) is not buffer:
            setattr(emitted, name, buffer)


def _call_idly(module: nn.Module) -> None:
    """Run the hooks of a call and nothing else: of all sharded modules the outermost has to be called first."""
    own = module.__dict__.get("forward")
    try:
        module.__dict__["forward"] = lambda: None
        module()
    finally:
        del module.__dict__["forward"]
        if own is not None:
            module.__dict__["forward"] = own


def _sharded(module: nn.Module) -> list[Any]:
    """The modules that `fully_shard` was applied to."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return []
    from torch.distributed.fsdp import FSDPModule

    if isinstance(module, FSDPModule):
        _call_idly(module)
    return [each for each in module.modules() if isinstance(each, FSDPModule)]


def _is_float(tensor: torch.Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()


def _flat(graph: fx.Graph, batch: Any) -> list[Any]:
    """The batch as the graph's placeholders take it."""
    signature: Any = getattr(graph._codegen, "signature", None)
    args, kwargs = ((), batch) if isinstance(batch, Mapping) else (batch if isinstance(batch, tuple) else (batch,), {})
    try:
        return list(signature.flatten(signature.bind(*args, **kwargs)))
    except TypeError as error:
        shown = trees.map_tensors(lambda t: tuple(t.shape), batch)
        raise InvalidInputError(
            f"capture_initial: the model cannot be called with this batch ({shown}): {error}.\n"
            f"  expected: a tensor, a tuple of arguments, or a dict of keyword arguments that the model takes."
        ) from error


def _check_guards(graph: fx.Graph, flat: list[Any]) -> None:
    signature: Any = getattr(graph._codegen, "signature", None)
    if signature.guards is not None:
        signature.guards(flat)

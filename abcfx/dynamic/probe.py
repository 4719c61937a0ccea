"""The probe: fixed inputs on which the model is run at each measure, to compare every layer with its first state."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import TypedDict

import torch
from torch import nn

from abcfx.capture import CapturedGraph
from abcfx.dag.layer_dag import build_dag
from abcfx.dynamic.first_weights import FirstWeights, FirstWeightsState
from abcfx.dynamic.live_module import LiveModule
from abcfx.dynamic.measured import LayerState, Moments, moments, products_of_many, rms, workable
from abcfx.dynamic.probe_inputs import FlatInputs, choose_inputs, flat_inputs
from abcfx.dynamic.sampling import SampledLayer, sample_layers
from abcfx.passes import probe_activations

Activations = tuple[torch.Tensor, ...]


class ProbeState(TypedDict):
    """A probe as `state_dict` writes it: `flat` are its inputs, `inputs` the first inputs of each layer."""

    flat: FlatInputs
    inputs: dict[str, torch.Tensor]
    first: FirstWeightsState


class Probe:
    """Fixed inputs of the model, with the first activations and weights of every layer, to be compared with later ones.

    The graph is run up to its last layer, in eval mode, without gradients and autocast, over the live weights.

    Args:
        captured: graphs of the transformed model.
        module: the module that is trained, as `transform` returned it; it may have been sharded by `fully_shard` since.
        first: keeps the first weights.

    Attributes:
        layers: every layer that can be measured.
        measured: the layers whose inputs on this probe fit their weights, in the order of `measure`.
        left_out: names of all other layers.
        flat: inputs of the model, as the graph's placeholders take them.
        inputs: a sample of what went into each layer at first.
    """

    def __init__(self, captured: CapturedGraph, module: nn.Module, first: FirstWeights) -> None:
        self.first = first
        self._emitted = captured.module
        self.graph = captured.module.graph if captured.module.eval_graph is None else captured.module.eval_graph
        dag = build_dag(captured, self.graph, unknown="report")
        self.layers, self.left_out = sample_layers(captured, dag, dict(module.named_parameters()), first.whole)
        self.measured = list(self.layers)
        operands = list(dict.fromkeys(layer.operand for layer in self.layers))
        self._position = {operand: i for i, operand in enumerate(operands)}
        probe = probe_activations(self._emitted, self.graph, operands).graph_module
        self._forward: Callable[..., Activations] = type(probe).forward
        called = [self._emitted.get_submodule(str(n.target)) for n in probe.graph.nodes if n.op == "call_module"]
        self._live = LiveModule(self._emitted, module, called)
        self.flat: FlatInputs = []
        self.inputs: dict[str, torch.Tensor] = {}
        self._sizes: dict[str, tuple[float, float]] = {}

    def take(self, args: object, kwargs: Mapping[str, object] | None, max_tokens: int) -> None:
        """Choose a part of the model's inputs, and remember activations and weights as they are.

        Args:
            args: positional inputs of the model; a bare tensor counts as one argument.
            kwargs: keyword inputs.
            max_tokens: number of tokens to keep of a batch of sequences.
        """
        given = flat_inputs(self.graph, args, kwargs)
        with self._live.entered():
            self.flat = choose_inputs(given, max_tokens, self.graph, self._largest_layer)
            self.inputs = self._first_inputs()
            parameters = self._live.parameters()
            self.first.take(self.layers, parameters)
            self._compare_with_first(parameters)

    def measure(self) -> list[tuple[Moments, Moments, Moments]]:
        """Run the model on the probe and return the moments of every layer of `measured`."""
        with self._live.entered():
            layers = self._layer_states(self._run(self.flat))
            if self.first.whole:  # one after the other, so that only one first weight is in memory
                found = {node: products_of_many([state])[0] for node, state in layers}
            else:
                at_once = dict(layers)
                found = dict(zip(at_once, products_of_many(list(at_once.values())), strict=True))
        return [moments(*self._sizes[layer.node], found[layer.node]) for layer in self.measured]

    def state_dict(self) -> ProbeState:
        """Return what `load_state_dict` restores."""
        return {"flat": self.flat, "inputs": dict(self.inputs), "first": self.first.state_dict()}

    def load_state_dict(self, state: ProbeState) -> None:
        """Restore a saved probe, possibly on another device. Raises InvalidInputError for that of another model."""
        with self._live.entered():
            parameters = self._live.parameters()
            self.first.load_state_dict(state["first"], self.layers, parameters)
            device = next(iter(parameters.values())).device
            self.flat = [x.to(device) if isinstance(x, torch.Tensor) else x for x in state["flat"]]
            self.inputs = {node: tensor.to(device) for node, tensor in state["inputs"].items()}
            self._compare_with_first(parameters)

    def _compare_with_first(self, parameters: Mapping[str, torch.Tensor]) -> None:
        """Work out which layers can be measured, and the RMS of their first inputs and weights."""
        self.measured = [layer for layer in self.layers if layer.node in self.inputs]
        self.left_out += [layer.node for layer in self.layers if layer.node not in self.inputs]
        self._sizes = {
            layer.node: (rms(workable(self.inputs[layer.node])), rms(workable(w0)))
            for layer, w0 in self.first.weights(self.measured, parameters)
        }

    def _layer_states(self, results: Activations) -> Iterator[tuple[str, LayerState]]:
        """Yield the name of each layer with its first and its present inputs and weights."""
        parameters = self._live.parameters()
        for layer, w0 in self.first.weights(self.measured, parameters):
            z0 = workable(self.inputs[layer.node])
            z = None if layer.fixed else layer.input(results[self._position[layer.operand]])
            w = layer.weight(parameters[layer.parameter])
            yield layer.node, (z0, workable(w0), None if z is None else workable(z), workable(w))

    def _first_inputs(self) -> dict[str, torch.Tensor]:
        """Return a sample of each layer's input; layers with one input (queries, keys, values) share the sample."""
        results = self._run(self.flat)
        found: dict[str, torch.Tensor] = {}
        samples: dict[object, torch.Tensor | None] = {}
        for layer in self.layers:
            key = (layer.operand, layer.fan_in, layer.kernel, layer.over, layer.paired)
            if key not in samples:
                samples[key] = self._sample(layer, results)
            if (sample := samples[key]) is not None:
                found[layer.node] = sample
        return found

    def _sample(self, layer: SampledLayer, results: Activations) -> torch.Tensor | None:
        sample = layer.input(results[self._position[layer.operand]])
        return None if sample is None else sample.clone()

    def _largest_layer(self, flat: FlatInputs) -> int:
        """Run the model and return the largest number of tokens (image positions, ...) that any layer gets."""
        results = self._run(flat)
        channels = {layer.operand: layer.fan_in // math.prod(layer.kernel) for layer in self.layers}
        return max((results[k].numel() // channels[operand] for operand, k in self._position.items()), default=0)

    def _run(self, flat: FlatInputs) -> Activations:
        return self._forward(self._emitted, *flat)

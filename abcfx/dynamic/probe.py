"""Runs the model on fixed inputs while it trains, to compare every layer's input and weight with their first values."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import TypedDict

import torch
from torch import nn

from abcfx.capture import CapturedGraph
from abcfx.capture.options import Capture
from abcfx.dag.building import build_dag
from abcfx.dynamic.first_weights import FirstWeights, FirstWeightsState
from abcfx.dynamic.live_module import LiveModule
from abcfx.dynamic.measured import LayerState, Moments, moments, products_of_many, rms, workable
from abcfx.dynamic.probe_inputs import FlatInputs, choose_inputs, flat_inputs
from abcfx.dynamic.sampling import SampledLayer, sample_layers
from abcfx.passes import probe_activations

Activations = tuple[torch.Tensor, ...]


class ProbeState(TypedDict):
    """The saved state of a `Probe`, which compares a model in training with its first state.

    Attributes:
        flat: the fixed inputs of the model, one for each placeholder of its captured fx graph.
        inputs: first input of each layer (a sample of rows), by layer name.
        first: the saved first weights.
    """

    flat: FlatInputs
    inputs: dict[str, torch.Tensor]
    first: FirstWeightsState


class Probe:
    """Fixed inputs of a model, with each layer's first input and weight, to measure how changes line up in training.

    Call `take` before training and `measure` during it. The model's captured fx graph is run up to its last layer, in
    eval mode, without gradients and autocast, with the present weights.

    Args:
        captured: graphs of the transformed model.
        module: the module that is trained, as `transform` returned it; it may have been sharded by `fully_shard` since.
        first: remembers the first weights.
        segmented: names of weights whose columns have several multipliers, since their input is a concatenation; they
            are not measured.

    Attributes:
        layers: every layer whose input can be seen in the graph.
        measured: those of them whose input fits the weight on these inputs, in the order of what `measure` returns.
        left_out: names of all other layers.
        flat: the fixed inputs of the model, one for each placeholder of the graph.
        inputs: first input of each layer, a sample of rows, by layer name.
    """

    def __init__(
        self, captured: CapturedGraph, module: nn.Module, first: FirstWeights, segmented: Collection[str] = ()
    ) -> None:
        self.first = first
        self._emitted = captured.module
        self.graph = captured.module.graph if captured.module.eval_graph is None else captured.module.eval_graph
        dag = build_dag(captured, self.graph, Capture(unknown="report"))
        parameters = dict(module.named_parameters())
        self.layers, self.left_out = sample_layers(captured, dag, parameters, first.whole, segmented)
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
        """Choose a part of the model's inputs, run it, and keep the layers' inputs and weights as they are then.

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
        """Run the model on its fixed inputs and compare every layer's input and weight with those before training.

        Alignment is 1/2 if updates and inputs (the factors of dW x) are independent, and 1 if they line up fully.

        Returns:
            For each layer in `measured`, the mean squares of the products dW x0, W0 dx and dW dx and of their factors
            (d: change since the first state), from which alignment exponents follow.
        """
        with self._live.entered():
            layers = self._layer_states(self._run(self.flat))
            if self.first.whole:  # one after the other, so that only one first weight is in memory
                found = {node: products_of_many([state])[0] for node, state in layers}
            else:
                at_once = dict(layers)
                found = dict(zip(at_once, products_of_many(list(at_once.values())), strict=True))
        return [moments(*self._sizes[layer.node], found[layer.node]) for layer in self.measured]

    def state_dict(self) -> ProbeState:
        """Return the state to save: fixed inputs of the model, first inputs and first weights of its layers."""
        return {"flat": self.flat, "inputs": dict(self.inputs), "first": self.first.state_dict()}

    def load_state_dict(self, state: ProbeState) -> None:
        """Restore a state saved by `state_dict`, moving its tensors to the device of the model.

        Raises:
            InvalidInputError: the state is of another model.
        """
        with self._live.entered():
            parameters = self._live.parameters()
            self.first.load_state_dict(state["first"], self.layers, parameters)
            device = next(iter(parameters.values())).device
            self.flat = [x.to(device) if isinstance(x, torch.Tensor) else x for x in state["flat"]]
            self.inputs = {node: tensor.to(device) for node, tensor in state["inputs"].items()}
            self._compare_with_first(parameters)

    def _compare_with_first(self, parameters: Mapping[str, torch.Tensor]) -> None:
        """Set `measured` to the layers that can be measured, and keep the RMS of their first inputs and weights.

        Args:
            parameters: the model's parameters by name.
        """
        self.measured = [layer for layer in self.layers if layer.node in self.inputs]
        self.left_out += [layer.node for layer in self.layers if layer.node not in self.inputs]
        self._sizes = {
            layer.node: (rms(workable(self.inputs[layer.node])), rms(workable(w0)))
            for layer, w0 in self.first.weights(self.measured, parameters)
        }

    def _layer_states(self, results: Activations) -> Iterator[tuple[str, LayerState]]:
        """Yield for each measured layer its name and (first input, first weight, present input, present weight).

        The present input is None where it cannot change, since it depends on the model's inputs alone.

        Args:
            results: what the graph computed in this run: the inputs of the layers.
        """
        parameters = self._live.parameters()
        for layer, w0 in self.first.weights(self.measured, parameters):
            z0 = workable(self.inputs[layer.node])
            z = None if layer.fixed else layer.input(results[self._position[layer.operand]])
            w = layer.weight(parameters[layer.parameter])
            yield layer.node, (z0, workable(w0), None if z is None else workable(z), workable(w))

    def _first_inputs(self) -> dict[str, torch.Tensor]:
        """Run the graph and return a sample of rows of each layer's input, by layer name.

        Layers with one and the same input (queries, keys, values) share a tensor. Layers whose input does not fit are
        left out.
        """
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
        """Copy a sample of rows of a layer's input from a run's results; None if its shape does not fit the weight."""
        sample = layer.input(results[self._position[layer.operand]])
        return None if sample is None else sample.clone()

    def _largest_layer(self, flat: FlatInputs) -> int:
        """Run the model's graph on inputs and return the largest number of rows that the input of any layer has.

        Rows are tokens, image positions and the like.

        Args:
            flat: inputs of the model, one for each placeholder of the graph.
        """
        results = self._run(flat)
        channels = {layer.operand: layer.fan_in // math.prod(layer.kernel) for layer in self.layers}
        return max((results[k].numel() // channels[operand] for operand, k in self._position.items()), default=0)

    def _run(self, flat: FlatInputs) -> Activations:
        """Run the model's captured fx graph on inputs, and return the inputs of all layers that can be measured.

        Args:
            flat: inputs of the model, one for each placeholder of the graph.
        """
        return self._forward(self._emitted, *flat)

"""Puts the shape and dtype of every value on the graph's nodes, as `node.meta["val"]`, without any real compute."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import fx, nn

from abcfx.capture.emitted import EmittedModule
from abcfx.capture.state import preserved_rng
from abcfx.support import trees
from abcfx.support.location import location


def to_meta(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor of the same shape, strides and dtype without storage."""
    return torch.empty_like(tensor, device="meta", requires_grad=tensor.requires_grad and tensor.is_leaf)


class _ShapeInterpreter(fx.Interpreter):
    """Runs a graph on meta tensors; torch.nn layers run as copies whose parameters are meta tensors too."""

    def __init__(self, module: EmittedModule, graph: fx.Graph, shadows: dict[int, Any]) -> None:
        super().__init__(module, graph=graph)
        self.shadows = shadows
        self.failed: fx.Node | None = None
        self._leaves: dict[str, nn.Module] = {}

    def run_node(self, n: fx.Node) -> Any:
        self.failed = n
        value = super().run_node(n)
        if n.op != "output":
            # Detached: a node must not keep an autograd graph alive.
            n.meta["val"] = trees.map_tensors(lambda t: t.detach() if t.grad_fn else t, value)
        return value

    def get_attr(self, target: Any, args: Any, kwargs: Any) -> Any:
        value = super().get_attr(target, args, kwargs)
        return self._shadow(value) if isinstance(value, torch.Tensor) else value

    def _shadow(self, tensor: torch.Tensor) -> torch.Tensor:
        if id(tensor) not in self.shadows:
            self.shadows[id(tensor)] = to_meta(tensor)
        shadow: torch.Tensor = self.shadows[id(tensor)]
        return shadow

    def call_module(self, target: Any, args: Any, kwargs: Any) -> Any:
        if target not in self._leaves:
            leaf = self.fetch_attr(target)
            memo: dict[int, Any] = {}
            for tensor in [*leaf.parameters(), *leaf.buffers()]:
                # The memo hands deepcopy the meta tensor in place of a copy of the real one.
                memo[id(tensor)] = self._shadow(tensor)
            self._leaves[target] = copy.deepcopy(leaf, memo)
        return self._leaves[target](*args, **kwargs)

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        return super().call_function(target, args, _on_meta(kwargs))

    def call_method(self, target: Any, args: Any, kwargs: Any) -> Any:
        if target == "to":
            args = tuple(torch.device("meta") if isinstance(a, torch.device) else a for a in args)
        return super().call_method(target, args, _on_meta(kwargs))


def _on_meta(kwargs: dict[str, Any]) -> dict[str, Any]:
    return {**kwargs, "device": torch.device("meta")} if kwargs.get("device") is not None else kwargs


def propagate_shapes(module: EmittedModule, slots: list[str], examples: Mapping[str, Any]) -> tuple[str, ...]:
    """Set `meta["val"]` on all nodes of both graphs from the example value of every placeholder.

    Returns:
        A note for each graph in which some value could not be had without running the model; nodes before it
        have theirs.
    """
    notes: list[str] = []
    shadows: dict[int, Any] = {}
    inputs = [trees.map_tensors(to_meta, examples[name]) for name in slots]
    for graph in module.graphs:
        interpreter = _ShapeInterpreter(module, graph, shadows)
        try:
            with preserved_rng(), torch.no_grad(), torch.device("meta"):
                interpreter.run(*inputs, enable_io_processing=False)
        except Exception as error:
            at = location(interpreter.failed) if interpreter.failed is not None else "the inputs"
            notes.append(f"no shapes from {at} on: {type(error).__name__}: {str(error).splitlines()[0]}")
    return tuple(dict.fromkeys(notes))

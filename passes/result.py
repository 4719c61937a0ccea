"""What every pass returns and raises, and the one way in which a pass makes a node."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch.fx as fx

META = "abcfx"
COPIED = ("val", "tensor_meta", "nn_module_stack", "stack_trace")


class PassError(RuntimeError):
    """A pass could not do what it was asked to: names the pass, the node and the reason."""


@dataclass(frozen=True)
class PassResult:
    """`touched`: names of the nodes that were made or changed. `notes`: what a reader should know."""

    graph_module: fx.GraphModule
    touched: tuple[str, ...]
    notes: tuple[str, ...] = ()

    @property
    def modified(self) -> bool:
        return bool(self.touched)


def create_after(
    like: fx.Node, name: str, target: Callable[..., Any], args: tuple[Any, ...], provenance: object
) -> fx.Node:
    """A call_function node right after `like`, with its shape, module stack and source line, and a provenance."""
    with like.graph.inserting_after(like):
        node = like.graph.create_node("call_function", target, args, name=name)
    node.meta = {key: like.meta[key] for key in COPIED if key in like.meta}
    node.meta[META] = provenance
    return node

"""Put the shape and dtype of every value on a graph's nodes, as `node.meta["val"]`, without any real compute."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import torch
from torch import fx, nn
from torch.fx.node import Argument, Target

from abcfx.capture.copying import computed_tensors
from abcfx.capture.emitted import EmittedModule
from abcfx.support import trees
from abcfx.support.location import location
from abcfx.support.running import preserved_rng


def to_meta(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor of the same shape, strides and dtype on the meta device, without storage."""
    return torch.empty_like(tensor, device="meta", requires_grad=tensor.requires_grad and tensor.is_leaf)


class _ShapeInterpreter(fx.Interpreter):
    """An interpreter that runs a graph on meta tensors, which have shapes only, and puts each in its `node.meta`.

    torch.nn layers run as copies whose parameters are meta tensors too.

    Attributes:
        shadows: the meta tensor of each parameter, buffer and constant, by the id of the real one.
        failed: the node that ran last, which is the cause when the run raises.
    """

    def __init__(self, module: EmittedModule, graph: fx.Graph, shadows: dict[int, torch.Tensor]) -> None:
        """Prepare to run one graph of a captured module on meta tensors, by which its shapes are found.

        `shadows` has the meta tensor of each parameter, buffer and constant by the id of the real one; it grows.
        """
        super().__init__(module, graph=graph)
        self.shadows = shadows
        self.failed: fx.Node | None = None
        self._leaves: dict[str, nn.Module] = {}

    def run_node(self, n: fx.Node) -> object:
        """Run one node and set its `meta["val"]` to the result, a meta tensor without autograd history."""
        self.failed = n
        value: object = super().run_node(n)
        if n.op != "output":
            # Detached: a node must not keep an autograd graph alive.
            n.meta["val"] = trees.map_tensors(lambda tensor: tensor.detach() if tensor.grad_fn else tensor, value)
        return value

    def get_attr(self, target: Target, args: tuple[Argument, ...], kwargs: dict[str, object]) -> object:
        """Return the meta tensor (a shape without values) that stands for a parameter, buffer or constant."""
        value: object = super().get_attr(target, args, kwargs)
        return self._shadow(value) if isinstance(value, torch.Tensor) else value

    def _shadow(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the meta tensor that stands for a parameter, buffer or constant; it is made at the first use."""
        if id(tensor) not in self.shadows:
            self.shadows[id(tensor)] = to_meta(tensor)
        return self.shadows[id(tensor)]

    def call_module(self, target: Target, args: tuple[Argument, ...], kwargs: dict[str, object]) -> object:
        """Run a copy of a torch.nn layer whose parameters are meta tensors."""
        path = str(target)
        if path not in self._leaves:
            leaf: nn.Module = self.fetch_attr(path)
            tensors = [*leaf.parameters(), *leaf.buffers(), *computed_tensors(leaf)]
            # The memo hands deepcopy the meta tensor in place of a copy of the real one.
            memo: dict[int, object] = {id(tensor): self._shadow(tensor) for tensor in tensors}
            self._leaves[path] = copy.deepcopy(leaf, memo)
        return self._leaves[path](*args, **kwargs)

    def call_function(self, target: Target, args: tuple[Argument, ...], kwargs: dict[str, object]) -> object:
        """Call a function on meta tensors, with the meta device in place of any other among its arguments."""
        return super().call_function(target, args, _on_meta(kwargs))

    def call_method(self, target: Target, args: tuple[Argument, ...], kwargs: dict[str, object]) -> object:
        """Call a method on meta tensors, with the meta device in place of any other among its arguments."""
        if target == "to":
            args = tuple(torch.device("meta") if isinstance(each, torch.device) else each for each in args)
        return super().call_method(target, args, _on_meta(kwargs))


def _on_meta(kwargs: dict[str, object]) -> dict[str, object]:
    """Return keyword arguments of a call, with the meta device in place of any other."""
    return {**kwargs, "device": torch.device("meta")} if kwargs.get("device") is not None else kwargs


def propagate_shapes(module: EmittedModule, slots: Sequence[str], examples: Mapping[str, object]) -> tuple[str, ...]:
    """Set `meta["val"]`, a meta tensor of the value's shape and dtype, on the nodes of both graphs of a module.

    Args:
        module: the module with the captured graphs.
        slots: names of the placeholders, in order.
        examples: the example value of every placeholder.

    Returns:
        A note for each graph in which some value could not be had without running the model; only the nodes before that
        value have theirs.
    """
    notes: list[str] = []
    shadows: dict[int, torch.Tensor] = {}
    inputs = [trees.map_tensors(to_meta, examples[name]) for name in slots]
    for graph in module.graphs:
        interpreter = _ShapeInterpreter(module, graph, shadows)
        try:
            with preserved_rng(), torch.no_grad(), torch.device("meta"):
                interpreter.run(*inputs, enable_io_processing=False)
        except Exception as error:  # the user's ops may need values, which meta tensors do not have, and raise anything
            at = location(interpreter.failed) if interpreter.failed is not None else "the inputs"
            notes.append(f"no shapes from {at} on: {type(error).__name__}: {str(error).splitlines()[0]}")
    return tuple(dict.fromkeys(notes))

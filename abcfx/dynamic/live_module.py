"""Runs a model's captured fx graph with the present weights of the model that is being trained, and leaves no trace."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

import torch
import torch.distributed as distributed
from torch import nn

from abcfx.capture.emitted import EmittedModule

if TYPE_CHECKING:
    from torch.distributed.fsdp import FSDPModule

_AUTOCASTING = ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)


class LiveModule:
    """Prepares a model in training for a run of its captured fx graph: weights gathered, eval mode, no gradients.

    The graph's module and the trained one may be two modules; within `entered` the first has the tensors of the second.

    Args:
        emitted: the module that owns the captured graph.
        module: the module that is trained, as `transform` returned it; it may have been sharded by `fully_shard` since.
        called: submodules that the graph calls; they and their own submodules are put in eval mode for the run.
    """

    def __init__(self, emitted: EmittedModule, module: nn.Module, called: Sequence[nn.Module]) -> None:
        self.module, self._emitted = module, emitted
        self._owners = {
            name: (module.get_submodule(path), attribute)
            for name, _ in module.named_parameters()
            for path, _, attribute in [name.rpartition(".")]
        }
        self._moded = list(dict.fromkeys(inner for each in called for inner in each.modules()))
        self._sharded: list[FSDPModule] = []

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Make the model ready for a run of its graph within the block, and restore it afterwards.

        Within the block sharded parameters are gathered, the submodules that the graph calls are in eval mode, and
        gradients and autocast are off.
        """
        training = [module for module in self._moded if module.training]
        with torch.no_grad(), ExitStack() as stack:
            for device in _AUTOCASTING:
                if torch.is_autocast_enabled(device):
                    stack.enter_context(torch.autocast(device, enabled=False))
            self._sharded = _sharded_parts(self.module)
            try:
                for module in training:
                    module.training = False
                self._gather()
                if self.module is not self._emitted:
                    _take_over_tensors(self._emitted, self.module)
                yield
            finally:
                for module in training:
                    module.training = True
                for sharded in self._sharded:
                    sharded.reshard()

    def parameters(self) -> dict[str, nn.Parameter]:
        """Return the trained module's parameters by name as they are now, gathered if they are sharded.

        They are looked up anew each time, since sharding, `.to` and assignment replace the objects.
        """
        self._gather()  # a sharded module lets go of its weights after each call
        return {name: getattr(owner, attribute) for name, (owner, attribute) in self._owners.items()}

    def _gather(self) -> None:
        """Gather the parameters of all sharded parts of the model (FSDP2's `unshard`)."""
        for sharded in self._sharded:
            sharded.unshard()


def _take_over_tensors(emitted: EmittedModule, model: nn.Module) -> None:
    """Let the captured fx graph's module hold the same parameters and buffers as the trained model, where they differ.

    They differ if a model that was transformed in place has got new tensors since.

    Args:
        emitted: the module of the captured graph, changed in place.
        model: the trained model.
    """
    for name, parameter in model.named_parameters(recurse=False):
        if getattr(emitted, name, None) is not parameter:
            emitted.register_parameter(name, parameter)
    for name, buffer in model.named_buffers(recurse=False):
        if getattr(emitted, name, None) is not buffer:
            setattr(emitted, name, buffer)


def _sharded_parts(module: nn.Module) -> list[FSDPModule]:
    """Return the submodules that `fully_shard` (FSDP2) was applied to; none outside of distributed training."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return []
    from torch.distributed.fsdp import FSDPModule

    if isinstance(module, FSDPModule):
        _call_without_forward(module)
    return [each for each in module.modules() if isinstance(each, FSDPModule)]


def _call_without_forward(module: nn.Module) -> None:
    """Run the hooks of a module's call without its forward: the outermost module's first call initialises FSDP2."""
    own = module.__dict__.get("forward")
    try:
        module.__dict__["forward"] = lambda: None
        module()
    finally:
        del module.__dict__["forward"]
        if own is not None:
            module.__dict__["forward"] = own

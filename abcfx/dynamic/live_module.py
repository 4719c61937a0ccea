"""The captured graphs' module kept in step with the module that is trained, for a run that leaves no trace."""

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
    """The weights of a module in training, gathered and in eval mode while a graph over them is run.

    Args:
        emitted: module of the captured graphs.
        module: the module that is trained, as `transform` returned it; it may have been sharded by `fully_shard` since.
        called: submodules that the graph calls, whose mode is switched with their own submodules'.
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
        """Gather sharded parameters, switch to eval mode, gradients and autocast off; restore all of it afterwards."""
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
        """Return the parameters by name as they are now: sharding, `.to` and assignment replace the objects."""
        self._gather()  # a sharded module lets go of its weights after each call
        return {name: getattr(owner, attribute) for name, (owner, attribute) in self._owners.items()}

    def _gather(self) -> None:
        for sharded in self._sharded:
            sharded.unshard()


def _take_over_tensors(emitted: EmittedModule, model: nn.Module) -> None:
    """Let the graphs' module hold the parameters and buffers of the model itself.

    They differ where a model transformed in place has got new ones since.
    """
    for name, parameter in model.named_parameters(recurse=False):
        if getattr(emitted, name, None) is not parameter:
            emitted.register_parameter(name, parameter)
    for name, buffer in model.named_buffers(recurse=False):
        if getattr(emitted, name, None) is not buffer:
            setattr(emitted, name, buffer)


def _sharded_parts(module: nn.Module) -> list[FSDPModule]:
    """Return the submodules that `fully_shard` was applied to."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return []
    from torch.distributed.fsdp import FSDPModule

    if isinstance(module, FSDPModule):
        _call_without_forward(module)
    return [each for each in module.modules() if isinstance(each, FSDPModule)]


def _call_without_forward(module: nn.Module) -> None:
    """Run the hooks of a call without its forward: FSDP2 initialises on the first call of the outermost module."""
    own = module.__dict__.get("forward")
    try:
        module.__dict__["forward"] = lambda: None
        module()
    finally:
        del module.__dict__["forward"]
        if own is not None:
            module.__dict__["forward"] = own

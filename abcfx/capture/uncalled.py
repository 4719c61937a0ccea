"""Refuses hooks on the modules that a captured graph does not call: they would never run, and nothing would say so."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping

from torch import nn

from abcfx.capture.emitted import EmittedModule
from abcfx.errors import InvalidInputError

_HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")


class NoHooks(OrderedDict[int, Callable[..., object]]):
    """A dict of hooks that refuses new ones, for a module that is never called, in place of the one nn.Module keeps.

    Attributes:
        path: the path of the module in the captured model.
        reason: why no graph calls the module, if that is known.
    """

    path = ""
    reason = ""

    def __setitem__(self, key: int, hook: Callable[..., object]) -> None:
        """Refuse to add a hook to the module: it would never run, since no graph calls the module.

        Raises:
            InvalidInputError: always.
        """
        why = f": {self.reason}" if self.reason else ""
        raise InvalidInputError(
            f"{self.path}: a hook on this module would never run. The graph of the result computes what it computes, "
            f"with its parameters, but does not call it{why}.\n"
            f"  To fix: abcfx.transform(..., apply='inplace') keeps your own model, with its calls and hooks; or "
            f"register the hook on the whole module of the result; or, if it changes values, on your model before "
            f"the transform: the graph then computes what it does."
        )


def refuse_hooks(module: EmittedModule, reasons: Mapping[str, str]) -> None:
    """Let submodules of an emitted module, which no graph calls, refuse hooks from now on.

    A submodule that has hooks of a kind already keeps those: the graph computes what they did while it was captured.

    Args:
        module: the module.
        reasons: why no graph calls a submodule, or "" where that is not known, by the submodule's path.
    """
    for path, reason in reasons.items():
        part = module.get_submodule(path)
        for kind in _HOOKS:
            if not getattr(part, kind):
                refusing = NoHooks()
                refusing.path, refusing.reason = path, reason
                setattr(part, kind, refusing)


def allow_hooks(model: nn.Module) -> None:
    """Let hooks be registered on every module of a model again, after `refuse_hooks`: its forward calls them all."""
    for part in model.modules():
        for kind in _HOOKS:
            if isinstance(getattr(part, kind), NoHooks):
                setattr(part, kind, OrderedDict())

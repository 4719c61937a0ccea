"""Notes on what a capture leaves out of the graph on purpose: hooks, checkpoints, checks of tensor values."""

from __future__ import annotations

from torch import nn

from abcfx.capture.emitted import ROOT_LEAF, EmittedModule

CHECKPOINTS = (
    "activation checkpointing in forward (torch.utils.checkpoint) is not part of the graph: its operations are, and "
    "keep their activations; torch.utils.checkpoint around calls of the module saves that memory"
)
# How many modules a note names.
_NAMED = 3
_LIBRARIES = ("torch.", "transformers.")


def hook_notes(model: nn.Module, module: EmittedModule, *, root: bool) -> tuple[str, ...]:
    """Return sentences for the report on hooks of modules that the captured graphs do not call as modules.

    Args:
        model: the model that was captured.
        module: the module with the graphs that were captured of it.
        root: True if the model's own hooks ran while it was captured.
    """
    called = {str(node.target) for graph in module.graphs for node in graph.find_nodes(op="call_module")}
    if ROOT_LEAF in called:
        called = {""}
    forward: list[str] = []
    backward: list[str] = []
    for path, each in model.named_modules():
        if "" in called or any((path + ".").startswith(leaf + ".") for leaf in called):
            continue
        if _user_hooks(each, "_forward_hooks", "_forward_pre_hooks") and (path or root):
            forward.append(path)
        if _user_hooks(each, "_backward_hooks", "_backward_pre_hooks"):
            backward.append(path)
    notes = []
    if forward:
        notes.append(
            f"forward hooks on {_listed(forward)} ran once, during capture: the graph computes what they changed; "
            "anything else they do (storing, printing) no longer happens"
        )
    if backward:
        notes.append(f"backward hooks on {_listed(backward)} are not part of the graph")
    return tuple(notes)


def checks_note(places: list[str]) -> tuple[str, ...]:
    """Return the sentence for the report on checks of tensor values that a graph leaves out, as an `assert` in forward.

    Args:
        places: the source lines of the checks; for none of them the result is empty.
    """
    if not places:
        return ()
    shown = "; ".join(dict.fromkeys(places))
    return (f"checks of tensor values are not part of the graph, which runs as if they passed: {shown}",)


def _user_hooks(module: nn.Module, *kinds: str) -> list[object]:
    """Return a module's hooks except those that torch and transformers register, which belong to the graph.

    `kinds` are the names of the attributes that hold hooks, such as "_forward_hooks".
    """
    hooks = [hook for kind in kinds for hook in getattr(module, kind, {}).values()]
    return [hook for hook in hooks if not (getattr(hook, "__module__", None) or "").startswith(_LIBRARIES)]


def _listed(paths: list[str]) -> str:
    """Return the first three module paths as text, and how many more there are."""
    more = f" and {len(paths) - _NAMED} more" if len(paths) > _NAMED else ""
    return ", ".join(path or "the model itself" for path in paths[:_NAMED]) + more

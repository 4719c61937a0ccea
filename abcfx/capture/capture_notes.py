"""Notes on what a capture leaves out of the graph on purpose: hooks, checkpoints, checks of tensor values."""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Iterable, Mapping, Sequence

from torch import nn

from abcfx.capture.emitted import ROOT_LEAF, EmittedModule
from abcfx.capture.state_spaces import Change
from abcfx.support import trees

CHECKPOINTS = (
    "activation checkpointing in forward (torch.utils.checkpoint) is not part of a graph: its operations are, and keep "
    "their activations. Submodules that are no graph keep their checkpoints; torch.utils.checkpoint around calls of a "
    "graph saves that memory"
)
# How many modules a note names.
_NAMED = 3
_LIBRARIES = ("torch.", "transformers.")


def uncalled_paths(model: nn.Module, module: EmittedModule, *, root: bool) -> list[str]:
    """Return the paths of the modules that captured graphs do not call as modules: their operations stand there.

    Lists and dicts of modules, which nobody can call, are not among them.

    Args:
        model: the model that was captured.
        module: the module with the graphs that were captured of it.
        root: whether the model itself, of path "", is one of them.
    """
    called = {str(node.target) for graph in module.graphs for node in graph.find_nodes(op="call_module")}
    if ROOT_LEAF in called:
        return []
    lists = nn.ModuleList | nn.ModuleDict
    paths = [path for path, each in model.named_modules() if (path or root) and not isinstance(each, lists)]
    return [path for path in paths if not any((path + ".").startswith(leaf + ".") for leaf in called)]


def hook_notes(model: nn.Module, paths: Iterable[str]) -> tuple[str, ...]:
    """Return sentences for the report on the user's hooks on modules that no graph calls.

    Forward hooks ran once, during capture, so that graphs have their operations; backward hooks are not in the graphs.

    Args:
        model: the model that was captured.
        paths: paths of the modules that no graph calls.
    """
    forward: list[str] = []
    backward: list[str] = []
    for path in paths:
        each = model.get_submodule(path)
        if _user_hooks(each, "_forward_hooks", "_forward_pre_hooks"):
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


def state_notes(model: nn.Module, changes: Sequence[Change], *, keeps_forward: bool) -> tuple[str, ...]:
    """Return a note on the Python attributes that forward changes, since a captured graph does not change them.

    Args:
        model: the model that was captured.
        changes: what a call of forward changed, in either mode.
        keeps_forward: whether the model's own forward goes on to run.
    """
    by_path = {change.path: change for change in changes}
    if not by_path:
        return ()
    told = []
    for change in list(by_path.values())[:_NAMED]:
        line = line_that_sets(model, change)
        told.append(f"{change.path} ({change.in_words()}{'; ' + line if line else ''})")
    more = f" and {len(by_path) - _NAMED} more" if len(by_path) > _NAMED else ""
    effect = (
        "planned was what the model as given computes"
        if keeps_forward
        else "the module of the result computes what the model as given computes and leaves that state alone "
        "(apply='inplace' keeps the model's own forward)"
    )
    return (f"forward changes state in Python, which no graph does: {', '.join(told)}{more}; {effect}",)


def line_that_sets(model: nn.Module, change: Change) -> str:
    """Return the first line of the model's classes that seems to set an attribute; "" for none.

    The line is given as `file.py:12: text`.

    `change` says which attribute a call of forward changed.
    """
    name = re.escape(change.name.partition("[")[0])
    writes = re.compile(
        rf"\b{name}\b['\"\])]*\s*(\[.*\]\s*)?([-+*/|%@]|//|\*\*)?=(?!=)|"
        rf"\b{name}\.(append|add|extend|update|insert|pop|\w+_)\(|register_\w+\(\s*['\"]{name}"
    )
    for cls in dict.fromkeys(cls for module in model.modules() for cls in type(module).__mro__):
        if cls.__module__.startswith(_LIBRARIES[0]):
            continue
        for name, member in vars(cls).items():
            if name == "__init__" or not inspect.isfunction(member):
                continue
            try:
                lines, first = inspect.getsourcelines(member)
            except (OSError, TypeError):
                continue
            for number, text in enumerate(lines, first):
                if writes.search(text):
                    return f"{os.path.basename(inspect.getfile(member))}:{number}: {text.strip()}"
    return ""


def fixed_inputs_note(
    model: nn.Module, args: tuple[object, ...] | None, kwargs: Mapping[str, object] | None
) -> tuple[str, ...]:
    """Return a note on arguments that hold numbers outside of tensors, which a captured graph fixes; none without such.

    Args:
        model: the model that is called.
        args: positional example inputs.
        kwargs: keyword example inputs.
    """
    try:
        arguments = inspect.signature(model.forward).bind(*(args or ()), **(kwargs or {})).arguments
    except TypeError:  # the inputs do not fit, which is told elsewhere
        return ()
    names = [name for name, value in arguments.items() if any(map(_is_data, trees.leaves_by_path(value).items()))]
    if not names:
        return ()
    return (
        f"numbers in arrays and lists are fixed in the graph, which refuses others: argument {_listed(names)}; "
        "give tensors in their place",
    )


def _is_data(item: tuple[str, object]) -> bool:
    """Whether a leaf of the model's arguments is an array or a float in a list, which looks like data.

    A number that is an argument of its own may be a switch or a size. `item` has the path of the leaf in the argument,
    and the leaf.
    """
    path, leaf = item
    is_array = type(leaf).__module__ == "numpy" and bool(getattr(leaf, "shape", ()))
    return is_array or (isinstance(leaf, float) and bool(path))


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
    """Return a module's hooks except those whose code is torch's or transformers'.

    `kinds` are the names of the attributes that hold hooks, such as "_forward_hooks".
    """
    hooks = [hook for kind in kinds for hook in getattr(module, kind, {}).values()]
    return [hook for hook in hooks if not (getattr(hook, "__module__", None) or "").startswith(_LIBRARIES)]


def _listed(paths: list[str]) -> str:
    """Return the first three module paths as text, and how many more there are."""
    more = f" and {len(paths) - _NAMED} more" if len(paths) > _NAMED else ""
    return ", ".join(path or "the model itself" for path in paths[:_NAMED]) + more

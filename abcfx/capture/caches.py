"""Empty what only one of two models has filled by a call: caches of masks and of rotary angles, counters."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress

import torch
from torch import nn

from abcfx.capture.examples import canonical
from abcfx.capture.state import contents_preserved, preserved
from abcfx.capture.state_spaces import MISSING
from abcfx.support.running import preserved_rng

_CONTAINERS = (list, dict, set, tuple)


Inputs = tuple[object, Mapping[str, object] | None]


@contextmanager
def equally_fresh(first: nn.Module, second: nn.Module, inputs: Inputs, of_second: Inputs) -> Iterator[None]:
    """Give two models of one architecture equally empty caches within the block, if one of them was never called.

    One of the two may have been called before and the other not: what forward keeps (a table for the length it saw) is
    then a tensor in one and None, or missing, in the other, and their graphs would differ. A cache that is filled in
    both stays.

    Args:
        first: one of the models.
        second: the other one.
        inputs: example inputs of the first model, (positional, keyword), for a call that shows what forward fills.
        of_second: those of the second model.
    """
    with ExitStack() as stack:
        for owner, new, (args, kwargs) in ((first, second, of_second), (second, first, inputs)):
            filled = _filled(owner, new)
            paths = _changed_by_call(new, args, kwargs) if filled else set()
            if not filled.keys() & paths:
                continue
            stack.enter_context(preserved(owner))
            for path in filled.keys() & paths:
                module, name = owner.get_submodule(path.rpartition(".")[0]), path.rpartition(".")[2]
                module.__dict__.pop(name, None)
                module._buffers.pop(name, None)
                if filled[path] is not MISSING:
                    module.__dict__[name] = filled[path]
        yield


def _filled(owner: nn.Module, new: nn.Module) -> dict[str, object]:
    """Find attributes that the modules of `owner` have filled and the same modules of another model have not.

    Args:
        owner: a model that may have been called before.
        new: a model of the same architecture.

    Returns:
        The value in `new` of each such attribute (None, 0, an empty container or `MISSING`), by its path.
    """
    theirs = dict(new.named_modules())
    found: dict[str, object] = {}
    for path, module in owner.named_modules():
        beside = theirs.get(path)
        if beside is None or type(beside) is not type(module):
            continue
        other = {**beside._parameters, **beside._modules, **beside._buffers, **vars(beside)}
        for name, value in [*vars(module).items(), *module._buffers.items()]:
            empty = other.get(name, MISSING)
            if name not in ("_buffers", "_parameters", "_modules") and _is_unset(empty) and not _is_unset(value):
                found[f"{path}.{name}".lstrip(".")] = empty
    return found


def _is_unset(value: object) -> bool:
    """Whether a value stands for nothing yet: a missing attribute, None, 0, an empty container."""
    if value is MISSING or value is None:
        return True
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return value == 0
    return isinstance(value, _CONTAINERS) and not value


def _changed_by_call(model: nn.Module, args: object, kwargs: Mapping[str, object] | None) -> set[str]:
    """Return the paths of the attributes that one call of the model changes; none if it cannot be called."""
    given, named = canonical(args, kwargs)
    if given is None or named is None or any(each.is_meta for each in model.parameters()):
        return set()
    with (
        contents_preserved(model.buffers()),
        preserved(model) as before,
        preserved_rng(),
        torch.no_grad(),
        warnings.catch_warnings(),
        suppress(Exception),  # the user's forward may raise anything; capturing it will say so
    ):
        warnings.simplefilter("ignore")
        model(*given, **named)
    return {change.path for change in before.undone}

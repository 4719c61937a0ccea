"""Classes of optimizers that abcfx knows, by the package that they come from; the name of a class alone says little."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping

import torch

PACKED = re.compile(r"(paged|fused|deepspeedcpu|cpu|\d+bit|fp8)")
# Package -> name of a class in it, without what says how it is packed -> the optimizer that it implements.
_KNOWN: Mapping[str, Mapping[str, str]] = {
    "torch.optim": {
        **dict.fromkeys(("adam", "adamw", "adamax", "nadam", "radam", "rmsprop", "adagrad"), ""),
        **dict.fromkeys(("sgd", "adafactor", "muon"), ""),
    },
    "transformers": {"adafactor": "", "adamw": ""},
    # its Adam decays as AdamW does, and its LAMB bounds updates instead of scaling them
    "bitsandbytes": {"adam": "adamw", "adamw": "", "lion": "", "sgd": "", "rmsprop": "", "adagrad": ""},
    "apex": {"adam": "adamw", "sgd": ""},  # FusedAdam; adam_w_mode is on by default
    "transformer_engine": {"adam": "adamw", "sgd": ""},
    "deepspeed": {"adam": "adamw", "lion": "", "adagrad": ""},
    "torchao": {"adam": "", "adamw": ""},
    "lion_pytorch": {"lion": ""},
    "adam_atan2_pytorch": {"adamatan2": ""},
}
# Classes of torch for which no rates are planned -> why, and the optimizer that comes next to each.
NOT_PLANNED: Mapping[str, tuple[str, str]] = {
    "adadelta": ("the size of its update follows that of its earlier updates", "adamw"),
    "rprop": ("each entry adapts a step of its own, of which lr is only the first", "adamw"),
    "lbfgs": ("it takes one lr for all parameters", "adamw"),
    "asgd": ("it lowers its rate by a rule of its own, in which lr counts twice", "sgd"),
    "sparseadam": ("it takes sparse gradients only; the entries that have one change as under Adam", "adam"),
}


def known_name(optimizer: type) -> str | None:
    """Return the name of the optimizer that a class implements, such as "adamw"; None for an unknown class.

    A class that is derived from a known one belongs to it as long as it does not bring a step of its own.

    >>> known_name(torch.optim.AdamW)
    'adamw'
    """
    for each in optimizer.__mro__:
        found = _in_table(each)
        if found is not None:
            return found if _step(optimizer) is _step(each) else None
    return None


def _in_table(optimizer: type) -> str | None:
    """Return the name of the optimizer that a class implements, by its package and name; None if it is in no table."""
    module, name = f"{optimizer.__module__}.", optimizer.__name__.lower().replace("_", "")
    for package, names in _KNOWN.items():
        if module.startswith(f"{package}."):
            key = PACKED.sub("", name)
            return names[key] or key if key in names else None
    return None


def _step(optimizer: type) -> object:
    """Return the function behind the `step` method of an optimizer class, without what torch wraps around it."""
    return inspect.unwrap(getattr(optimizer, "step", _step))


def inner_optimizer(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """Return the optimizer inside a wrapper (Accelerate, ZeroRedundancyOptimizer); any other optimizer as it is."""
    held = next((each for key in ("optimizer", "optim") if (each := getattr(optimizer, key, None)) is not None), None)
    if known_name(type(optimizer)) is None and isinstance(held, torch.optim.Optimizer) and held is not optimizer:
        return inner_optimizer(held)
    return optimizer


def decays_decoupled(optimizer: torch.optim.Optimizer, options: Mapping[str, object]) -> bool | None:
    """Return whether the options of an optimizer say that weight decay is decoupled, as in AdamW; None if none says.

    Args:
        optimizer: an instance; fused Adams of several packages keep `adam_w_mode` as an attribute.
        options: its defaults with the values of one group.
    """
    for key in ("decoupled_weight_decay", "adam_w_mode", "adamw_mode", "is_adamw"):
        said = options.get(key, getattr(optimizer, key, None))
        if said is not None:
            return bool(said)
    return None

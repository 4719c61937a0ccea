"""How large an optimizer's update is before the learning rate: families, by name, class, instance, role or pattern."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

import torch
from torch import nn

from abcfx.errors import InvalidInputError
from abcfx.support.patterns import match_patterns
from abcfx.theory.parametrizations import ROLES

Optimizer = str | type[torch.optim.Optimizer] | torch.optim.Optimizer


@dataclass(frozen=True)
class OptimizerFamily:
    """What an optimizer does to a parameter, as far as width is concerned (docs, "Optimizers").

    `update`: "sign" (entries O(1): Adam, Lion), "gradient" (entries ~ the gradient: SGD), "relative" (entries ~ RMS of
    the weight: Adafactor, LAMB), "spectral" (all singular values O(1): Muon). `absorb`: how many times a moves into c
    when a multiplier m^-a moves into the weight. `decay`: how weight decay is applied: "decoupled" (w shrinks by
    lr x decay), "gradient" (added to the gradient), "ratio" (added to the update before its size is set, as in LAMB).
    `shape`: what the optimizer itself multiplies a spectral update with: "" nothing, "tall" sqrt(max(1, out / in)),
    "rms" sqrt(max(out, in)).
    """

    name: str
    update: str
    absorb: int
    has_eps: bool = False
    decay: str = "decoupled"
    shape: str = ""

    def rate_shift(self, a: float) -> float:
        """What absorbing a multiplier m^-a adds to c."""
        return self.absorb * a

    def decay_shift(self, a: float) -> float:
        """What absorbing a multiplier m^-a adds to the exponent of m in weight_decay = m^shift, with lr moved along."""
        if self.update == "gradient":
            return 2.0 * a
        if self.decay == "gradient":
            return 2.0 * a
        return a if self.update != "relative" or self.decay == "ratio" else 0.0

    def independent_decay(self, c: float, b: float) -> float:
        """The exponent of weight decay that keeps the share of a weight lost in a step independent of width."""
        return c + b if self.decay == "ratio" else c

    def spectral_growth(self, e_in: float, e_out: float) -> float:
        """Exponent of rms(dW x) / rms(x) for an update with lr 1: its operator norm on vectors of fan_in entries.

        |dW x|_rms <= |dW|_op sqrt(fan_in / fan_out) |x|_rms, with equality for the singular vectors that matter.
        """
        own = {"": 0.0, "tall": max(0.0, e_out - e_in) / 2, "rms": max(e_in, e_out) / 2}[self.shape]
        return (e_in - e_out) / 2 + own


def _families() -> dict[str, OptimizerFamily]:
    coupled = [
        OptimizerFamily(name, "sign", 1, True, "gradient")
        for name in ("adam", "adamax", "nadam", "radam", "rmsprop", "adagrad")
    ]
    found = [
        *coupled,
        OptimizerFamily("adamw", "sign", 1, True),
        OptimizerFamily("soap", "sign", 1, True),
        OptimizerFamily("adamatan2", "sign", 1),
        OptimizerFamily("lion", "sign", 1),
        OptimizerFamily("sign", "sign", 1),
        OptimizerFamily("sgd", "gradient", 2, decay="gradient"),
        OptimizerFamily("adafactor", "relative", 0),
        OptimizerFamily("lamb", "relative", 0, True, "ratio"),
        OptimizerFamily("muon", "spectral", 1, shape="tall"),
        OptimizerFamily("muon_rms", "spectral", 1, shape="rms"),
    ]
    return {each.name: each for each in found}


FAMILIES: dict[str, OptimizerFamily] = _families()
_BY_KEY = {name.replace("_", ""): each for name, each in FAMILIES.items()}
_PACKED = re.compile(r"(paged|fused|deepspeedcpu|cpu|\d+bit|fp8)")


def family(optimizer: Optimizer) -> OptimizerFamily:
    """The family of an optimizer given by name, class or instance.

    Low-precision, fused and paged variants belong to the optimizer that they pack (AdamW8bit, FusedAdam).

    Raises:
        InvalidInputError: its update size is not known.
    """
    options: Mapping[str, object] = {}
    if isinstance(optimizer, torch.optim.Optimizer):
        name, options = type(optimizer).__name__, optimizer.defaults
    else:
        name = optimizer.__name__ if isinstance(optimizer, type) else optimizer
    key = name.lower().replace("-", "").replace("_", "") if isinstance(name, str) else ""
    found = _BY_KEY.get(key) or _BY_KEY.get(_PACKED.sub("", key))
    if found is None:
        nearest = [_BY_KEY[near].name for near in get_close_matches(key, _BY_KEY, n=1)] or ["adamw"]
        raise InvalidInputError(
            f"optimizer={optimizer!r} is not known, so the size of its update is not, and no rates can be solved.\n"
            f"  Expected one of {', '.join(sorted(FAMILIES))}; or a class or an instance of one of them.\n"
            f"  To fix: optimizer={nearest[0]!r}, or the one whose update is as large: 'adamw' for entries of O(1)"
        )
    if options.get("decoupled_weight_decay") and found.decay == "gradient":
        return OptimizerFamily(found.name, found.update, found.absorb, found.has_eps)
    if found.name == "muon" and options.get("adjust_lr_fn") == "match_rms_adamw":
        return FAMILIES["muon_rms"]
    return found


def hyperparameters(optimizer: Any) -> dict[str, float]:
    """lr, weight_decay and eps that an optimizer instance was made with; {} for anything else."""
    if not isinstance(optimizer, torch.optim.Optimizer):
        return {}
    found = {key: optimizer.defaults.get(key) for key in ("lr", "weight_decay", "eps")}
    return {key: float(value) for key, value in found.items() if isinstance(value, int | float)}


def assign_families(
    optimizer: Optimizer | Mapping[str, Optimizer], roles: Mapping[str, str], parameters: Mapping[str, nn.Parameter]
) -> dict[str, OptimizerFamily]:
    """The family of each parameter.

    Args:
        optimizer: one optimizer for all, or a dict of role, glob pattern or "default" to one. A pattern is stronger
            than a role, a role than "default".
        roles: role of each parameter.
        parameters: by name.

    Raises:
        InvalidInputError: a parameter gets none, a key matches nothing, or Muon would get something else than a matrix.
    """
    if not isinstance(optimizer, Mapping):
        found = dict.fromkeys(parameters, family(optimizer))
    else:
        named = {key: family(value) for key, value in optimizer.items()}
        patterns = {key: each for key, each in named.items() if key not in (*ROLES, "default")}
        matched = match_patterns("optimizer", patterns, parameters)
        missing = [n for n in parameters if n not in matched and roles[n] not in named and "default" not in named]
        if missing:
            raise InvalidInputError(
                f"optimizer: {missing[0]!r} (role {roles[missing[0]]}) and {len(missing) - 1} more get no optimizer.\n"
                f"  To fix: optimizer={{..., 'default': 'adamw'}}"
            )
        found = {n: matched.get(n) or named.get(roles[n]) or named["default"] for n in parameters}
    for name, each in found.items():
        if each.update == "spectral" and parameters[name].ndim < 2 and parameters[name].requires_grad:
            raise InvalidInputError(
                f"optimizer: {each.name} takes matrices only, and {name!r} has shape {tuple(parameters[name].shape)}.\n"
                f"  To fix: optimizer={{'hidden': {each.name!r}, 'default': 'adamw'}}, "
                f"then Muon(result.groups_for({each.name!r})) and AdamW(result.groups_for('adamw'))"
            )
    return found

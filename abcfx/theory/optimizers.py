"""Families of optimizers: how large an update is before the learning rate, and how decay and eps are applied."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Literal, TypeAlias

import torch
from torch import nn

from abcfx.errors import InvalidInputError
from abcfx.support.patterns import match_patterns
from abcfx.theory.parametrizations import ROLES

UpdateSize: TypeAlias = Literal["sign", "gradient", "relative", "spectral"]
Optimizer: TypeAlias = str | type[torch.optim.Optimizer] | torch.optim.Optimizer


@dataclass(frozen=True)
class OptimizerFamily:
    """Optimizers whose updates depend on width in the same way.

    Attributes:
        name: lower case, as the user writes it.
        update: size of an update with lr = 1: "sign", entries O(1) (Adam, Lion); "gradient", entries as large as the
            gradient's (SGD); "relative", entries as large as the weight's (Adafactor, LAMB); "spectral", all singular
            values O(1) (Muon).
        absorb: number of times that a is added to c when a multiplier m^-a moves into the weight.
        has_eps: whether it has an eps beside the gradient, as Adam has.
        decay: how weight decay acts: "decoupled", the weight shrinks by lr x decay; "gradient", it is added to the
            gradient; "ratio", it is added to the update before the size of that is set, as in LAMB.
        shape: factor that the optimizer itself puts on a spectral update: "" none, "tall" sqrt(max(1, out / in)), "rms"
            sqrt(max(out, in)).
    """

    name: str
    update: UpdateSize
    absorb: int
    has_eps: bool = False
    decay: Literal["decoupled", "gradient", "ratio"] = "decoupled"
    shape: Literal["", "tall", "rms"] = ""

    def rate_shift(self, a: float) -> float:
        """Return what is added to c when a multiplier m^-a moves into the weight."""
        return self.absorb * a

    def decay_shift(self, a: float) -> float:
        """Return the power of m by which weight decay changes when a multiplier m^-a moves into weight and rate."""
        if self.update == "gradient":
            return 2.0 * a
        if self.decay == "gradient":
            return 2.0 * a
        return a if self.update != "relative" or self.decay == "ratio" else 0.0

    def independent_decay(self, c: float, b: float) -> float:
        """Return the exponent of weight decay at which a step shrinks a weight by the same share at every width."""
        return c + b if self.decay == "ratio" else c

    def spectral_growth(self, e_in: float, e_out: float) -> float:
        """Return the exponent of rms(dW x) / rms(x) for an update with lr = 1.

        It is that of the operator norm: |dW x|_rms <= |dW|_op sqrt(fan_in / fan_out) |x|_rms, with equality for the
        singular vectors that matter.
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
    """Find the family of an optimizer.

    Args:
        optimizer: a name in any case, a class or an instance. Low-precision, fused and paged variants belong to the
            optimizer that they implement (AdamW8bit, FusedAdam).

    Raises:
        InvalidInputError: the size of its update is not known.

    >>> family("AdamW").update
    'sign'
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


def hyperparameters(optimizer: object) -> dict[str, float]:
    """Read lr, weight_decay and eps off an optimizer instance; {} for anything else."""
    if not isinstance(optimizer, torch.optim.Optimizer):
        return {}
    found = {key: optimizer.defaults.get(key) for key in ("lr", "weight_decay", "eps")}
    return {key: float(value) for key, value in found.items() if isinstance(value, int | float)}


def assign_families(
    optimizer: Optimizer | Mapping[str, Optimizer], roles: Mapping[str, str], parameters: Mapping[str, nn.Parameter]
) -> dict[str, OptimizerFamily]:
    """Find the family of each parameter.

    Args:
        optimizer: one optimizer for all, or a dict of role, glob pattern or "default" to one. A pattern is stronger
            than a role, and a role stronger than "default".
        roles: role of each parameter.
        parameters: the parameters by name.

    Raises:
        InvalidInputError: a parameter gets no optimizer, a key matches nothing, or Muon gets something else than a
            matrix.
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

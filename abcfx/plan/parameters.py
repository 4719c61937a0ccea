"""From exponents to numbers: multiplier, init, lr, eps and weight decay of every parameter; the spec."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from abcfx.errors import InvalidInputError
from abcfx.exponents.assign import FixedExponents, ParameterExponents
from abcfx.exponents.dag_program import Binding, SolvedDag
from abcfx.exponents.depth import DepthExponents, DepthScaling
from abcfx.plan.absorb import absorbed_exponents, solved_exponents
from abcfx.plan.init import Init, OwnInit
from abcfx.rules import Layer
from abcfx.rules.extents import ParameterDim
from abcfx.rules.values import shape_of
from abcfx.support.patterns import match_patterns
from abcfx.theory.optimizers import OptimizerFamily
from abcfx.theory.parametrizations import ROLES

DEFAULT_EPS = 1e-8
ByRole = float | Mapping[str, float]


@dataclass(frozen=True)
class ParameterPlan:
    """Exponents (of m) and numbers of one parameter; `lr` is absolute; `a` and `multiplier` are by node of each use.

    `fold`: the factor that puts its multipliers into it; `left`: uses whose multiplier cannot be put there.
    """

    role: str
    why: str
    growth: tuple[float, ...]
    width: float
    a: dict[str, float]
    b: float
    c: float
    g: float
    multiplier: dict[str, float]
    std: float | None
    lr: float
    eps: float | None
    weight_decay: float
    optimizer: str
    r: float | None
    binding: Binding
    void: bool
    init: Init
    own_init: OwnInit | None
    trainable: bool
    fold: float = 1.0
    left: tuple[str, ...] = ()

    def row(self) -> dict[str, Any]:
        """The JSON-able row of this parameter in the spec. `a` and `multiplier` are by node where uses differ."""
        own = self.own_init
        return {
            "role": self.role,
            "why": self.why,
            "growth": list(self.growth),
            "width": self.width,
            "a": _collapsed(self.a),
            "b": self.b,
            "c": self.c,
            "g": self.g,
            "multiplier": _collapsed(self.multiplier, 1.0),
            "std": self.std,
            "lr": self.lr,
            "eps": self.eps,
            "weight_decay": self.weight_decay,
            "optimizer": self.optimizer,
            "r": self.r,
            "binding": str(self.binding),
            "void": self.void,
            "init_factor": self.init.factor,
            "own_init": None if own is None else {"exponent": own.exponent, "measured": own.measured},
        }


def _collapsed(by_node: Mapping[str, float], none: float = 0.0) -> float | dict[str, float]:
    values = set(by_node.values())
    return dict(by_node) if len(values) > 1 else next(iter(values), none)


_CHOICES = {
    "init": ("auto", "redraw", "keep"),
    "scales": ("insert", "absorb", "off"),
    "weight_decay_mode": ("independent", "coupled", "fixed"),
}


@dataclass(frozen=True)
class Options:
    """The user's numbers. `lr` and `std` are constants, or by role (a role that is left out takes 1 x the default)."""

    lr: ByRole
    std: ByRole
    weight_decay: float
    eps: float | None
    init: str
    scales: str
    weight_decay_mode: str = "independent"
    no_decay: tuple[str, ...] = ()
    batch_ratio: float = 1.0
    horizon_ratio: float = 1.0

    def __post_init__(self) -> None:
        for name, allowed in _CHOICES.items():
            if getattr(self, name) not in allowed:
                raise InvalidInputError(f"{name}={getattr(self, name)!r}; expected one of {', '.join(allowed)}.")
        for name in ("lr", "std"):
            value = getattr(self, name)
            numbers = value.values() if isinstance(value, Mapping) else [value]
            if isinstance(value, Mapping) and (wrong := set(value) - {*ROLES, "default"}):
                known = ", ".join(ROLES)
                raise InvalidInputError(f"{name}: unknown role {sorted(wrong)[0]!r}; expected {known} or default.")
            if any(not x > 0 or x == float("inf") for x in numbers):
                raise InvalidInputError(f"{name}={value!r}; expected positive, finite numbers.")
        for name in ("batch_ratio", "horizon_ratio"):
            if not 0 < getattr(self, name) < float("inf"):
                raise InvalidInputError(f"{name}={getattr(self, name)!r}; expected a positive, finite number.")
        if not 0 <= self.weight_decay < float("inf"):
            raise InvalidInputError(f"weight_decay={self.weight_decay!r}; expected a finite number, at least 0.")

    def schedule_factors(self, family: OptimizerFamily) -> tuple[float, float]:
        """What lr and weight decay are multiplied with for another batch size and number of tokens than the base run's.

        lr ~ batch^1/2 for Adam and its kin (Malladi et al. 2022, arXiv 2205.10287), ~ batch for SGD (Goyal et al. 2017,
        arXiv 1706.02677), ~ tokens^-0.32 (Bjorck et al. 2024, arXiv 2409.19913). Weight decay keeps its time scale as a
        share of the run, tokens x lr x decay / batch (Wang and Aitchison 2024, arXiv 2405.13698).
        """
        power = 1.0 if family.update == "gradient" else 0.5
        lr = float(self.batch_ratio**power * self.horizon_ratio**-0.32)
        return lr, self.batch_ratio / self.horizon_ratio / lr

    def without_decay(self, roles: Mapping[str, str]) -> set[str]:
        """The parameters that `no_decay` (roles and glob patterns) takes out of weight decay."""
        patterns = [key for key in self.no_decay if key not in ROLES]
        matched = match_patterns("no_decay", dict.fromkeys(patterns, True), roles)
        return {name for name, role in roles.items() if name in matched or role in self.no_decay}

    def constant(self, name: str, role: str, default: float) -> float:
        """The user's constant `name` ("lr" or "std") for a role."""
        value = getattr(self, name)
        return float(value.get(role, value.get("default", default)) if isinstance(value, Mapping) else value)


def make_plan(
    setting: FixedExponents,
    solved: SolvedDag,
    parameters: Mapping[str, torch.nn.Parameter],
    own_init: Mapping[str, OwnInit] | None,
    options: Options,
    depth: DepthScaling,
) -> dict[str, ParameterPlan]:
    """Numbers for every parameter. Without `own_init` (no base) widths are absolute and weights are redrawn at n^-b."""
    plan = {}
    eps = DEFAULT_EPS if options.eps is None else options.eps
    as_solved = solved_exponents(setting, solved, options.weight_decay_mode)
    absorbed = absorbed_exponents(setting, solved, options.weight_decay_mode)
    gauges = absorbed if options.scales == "absorb" else as_solved
    undecayed = options.without_decay({name: gauge.decided.role for name, gauge in gauges.items()})
    for name, parameter in parameters.items():
        gauge = gauges[name]
        decided = gauge.decided
        n = setting.widths.scale if setting.widths.has_base else _own_width(setting, name, parameter)
        own = None if own_init is None else own_init[name]
        family = setting.families[name]
        lr = options.constant("lr", decided.role, 1e-3)
        ratio, deep = depth.ratios.get(name, 1.0), depth.inserted.get(name, DepthExponents())
        deep_absorbed = depth.absorbed.get(name, DepthExponents())
        applied = deep_absorbed if options.scales == "absorb" else deep
        faster, more_decay = options.schedule_factors(family)
        shrink = 0.0 if name in undecayed else _power(n, gauge.decay) * _power(ratio, applied.decay)
        shrink = 1.0 if shrink and options.weight_decay_mode == "fixed" else shrink
        init = _init(decided, parameter, own, n, options, setting).times(_power(ratio, -applied.b))
        if name in depth.inserted and own is not None and setting.widths.scale == 1.0:
            init = init.times(own.depth_factor)
        plan[name] = ParameterPlan(
            role=decided.role,
            why=decided.why,
            growth=setting.widths.parameter(name, tuple(parameter.shape)),
            width=_shown_width(setting, name, parameter, n),
            a=decided.a,
            b=decided.b,
            c=gauge.c,
            g=gauge.g,
            multiplier={node: _power(n, -a) for node, a in decided.a.items()},
            std=init.std,
            lr=lr * faster * _power(n, -gauge.c) * _power(ratio, -applied.c),
            eps=eps * _power(n, -gauge.g) * _power(ratio, -applied.g) if family.has_eps else None,
            weight_decay=options.weight_decay * shrink * more_decay,
            optimizer=family.name,
            r=next((solved.r[node] for node in decided.a if node in solved.r), None),
            binding=solved.binding[name],
            void=decided.void,
            init=init,
            own_init=own,
            trainable=parameter.requires_grad,
            fold=_power(n, gauge.decided.b - absorbed[name].decided.b) * _power(ratio, applied.b - deep_absorbed.b),
            left=tuple(node for node, a in absorbed[name].decided.a.items() if a and n != 1.0),
        )
    return plan


def _power(n: float, exponent: float) -> float:
    return 1.0 if exponent == 0 or n == 1 else float(n**exponent)


def unscaled(decided: Mapping[str, ParameterExponents]) -> dict[str, ParameterExponents]:
    """The exponents with every multiplier moved into the init where one use allows it, and dropped elsewhere."""
    return {
        name: replace(p, a=dict.fromkeys(p.a, 0.0), b=p.b + next(iter(p.a.values()), 0.0))
        for name, p in decided.items()
    }


def _own_width(setting: FixedExponents, name: str, parameter: torch.nn.Parameter) -> float:
    """Without a base, n is fan_in, and fan_out for first layers; for a vector, its length."""
    decided = setting.parameters[name]
    for node in decided.a:
        kind = setting.dag.kind(node)
        if isinstance(kind, Layer):
            dims = kind.fan_out[:1] if decided.role == "embedding" else kind.fan_in
            sizes = [
                parameter.shape[d.index]
                if isinstance(d, ParameterDim)
                else (shape_of(d.node) or parameter.shape)[d.index]
                for d in dims
            ]
            return float(torch.Size(size for size in sizes if size > 0).numel())
    return float(parameter.shape[-1]) if parameter.ndim and decided.role == "vector" else 1.0


def _shown_width(setting: FixedExponents, name: str, parameter: torch.nn.Parameter, n: float) -> float:
    return n if not setting.widths.has_base or any(setting.widths.parameter(name, tuple(parameter.shape))) else 1.0


def _init(
    decided: ParameterExponents,
    parameter: torch.nn.Parameter,
    own: OwnInit | None,
    n: float,
    options: Options,
    setting: FixedExponents,
) -> Init:
    """What is done to a tensor. Only weights take the user's constant; vectors keep theirs at every width."""
    is_matrix = any(isinstance(setting.dag.kind(node), Layer) for node in decided.a)
    if options.init == "keep" or decided.role == "plain" or decided.normalised:
        return Init.keep(parameter)
    constant = options.constant("std", decided.role, 1.0) if is_matrix else 1.0
    if setting.widths.has_base:
        if own is None:
            return Init()  # on the meta device, with nothing to read the model's own init off
        factor = _power(n, own.exponent - decided.b) * constant
        law = own.base_rms * _power(n, -decided.b) * constant
        return Init.scaled(factor, own, law, parameter.is_meta).drawn_anew(options.init == "redraw" and is_matrix, law)
    if is_matrix:  # absolute widths: N(0, n^-2b)
        return Init(std=constant * _power(n, -decided.b), redraw=True)
    if decided.is_bias:  # torch lets them shrink with fan_in; a vector starts at a constant
        return Init(factor=0.0, std=0.0, fill=0.0)
    return Init.keep(parameter).times(_power(n, -decided.b))

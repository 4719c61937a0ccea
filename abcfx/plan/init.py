"""Decides how each tensor is initialised: the values that the model drew itself times one exact factor, or new values.

With a base, the law of the model's own init is read off the draws of base and target: RMS entry ~ m^-beta, with beta
pooled over like tensors and rounded to a quarter of a growth exponent where that lies within the sampling error. The
factor m^(beta - b) then gives RMS ~ m^-b, whatever the scheme is (constant, fan-in, orthogonal, zero). It is exactly 1
at the base width.
"""

from __future__ import annotations

import math
import re
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch

from abcfx.errors import InvalidInputError
from abcfx.pairing.blocks import pair_parameters
from abcfx.pairing.widths import SizeGrowth, WidthGrowth

SIGMAS = 4.0  # sampling errors within which a measured exponent is taken for the round one beside it
RESOLUTION = 1e-3
DEPTH_RESOLUTION = 0.1  # one more block among four changes 1/sqrt(L) by as much
SAMPLE = 1 << 17


@dataclass(frozen=True)
class OwnInit:
    """A measurement of how the init in the model's own code scales with width: RMS entry ~ m^-exponent.

    Attributes:
        exponent: the exponent of the width ratio m, rounded where that lies within the sampling error.
        measured: the exponent before rounding.
        error: its sampling error.
        snapped: whether it was rounded.
        rms: RMS entry of the tensor in the model (the target).
        base_rms: RMS entry of the tensor in the base.
        constant: the value of every entry of the target's tensor, where all are equal; else None.
    """

    exponent: float
    measured: float
    error: float
    snapped: bool
    rms: float
    base_rms: float
    constant: float | None = None

    @property
    def depth_factor(self) -> float:
        """The factor that takes the dependence on depth, such as 1 / sqrt(2 L) for L blocks, out of an init.

        It is measured at the base's width, as the ratio of RMS entries; 1 if that is near 1.
        """
        ratio = self.base_rms / self.rms if self.rms and self.base_rms else 1.0
        return ratio if abs(math.log(ratio)) > DEPTH_RESOLUTION else 1.0


@dataclass(frozen=True)
class Init:
    """A plan of how one tensor is initialised: its values kept, multiplied, or drawn again.

    Attributes:
        factor: number by which the model's own values are multiplied.
        std: RMS entry that the tensor then has; None where it is not known (the meta device).
        fill: the value of all entries of a constant tensor, such as a gain; else None.
        redraw: whether the tensor is drawn from N(0, std^2) instead.
        values: the tensor's own entries, where it always gets these (times `factor`) and no drawn ones; else None.
    """

    factor: float = 1.0
    std: float | None = None
    fill: float | None = None
    redraw: bool = False
    values: torch.Tensor | None = field(default=None, repr=False, compare=False)

    @classmethod
    def of_frozen(cls, parameter: torch.Tensor, own: OwnInit | None) -> Init:
        """Return a plan that gives a frozen tensor the values it has; on the meta device, those that its code draws.

        Args:
            parameter: the frozen tensor. Its storage is shared, not copied.
            own: how the model's own code draws it, where that is known.
        """
        if parameter.is_meta:
            return cls() if own is None else cls(std=own.rms, fill=own.constant)
        return replace(cls.keep(parameter), values=parameter.detach())

    @classmethod
    def keep(cls, parameter: torch.Tensor) -> Init:
        """Return a plan that leaves a tensor as the model drew it."""
        return cls() if parameter.is_meta else cls(std=rms(parameter), fill=_constant(parameter))

    def draw(self, tensor: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
        """Fill a tensor with new values as planned, whatever it held, and return it."""
        if self.values is not None:
            return tensor.copy_(self.values).mul_(self.factor)
        if self.fill is not None:
            return tensor.fill_(self.fill)
        return tensor.normal_(0.0, self.std or 0.0, generator=generator)

    def times(self, factor: float) -> Init:
        """Return the plan with its values multiplied by one more factor."""
        std, fill = (None if value is None else value * factor for value in (self.std, self.fill))
        return replace(self, factor=self.factor * factor, std=std, fill=fill)

    @classmethod
    def scaled(cls, factor: float, own: OwnInit, std: float, is_meta: bool) -> Init:
        """Return a plan that multiplies the values that the model itself drew by a factor.

        Args:
            factor: the factor.
            own: the RMS entry, or constant, that the model's own code gives the tensor.
            std: RMS entry for a tensor on the meta device, which has no values.
            is_meta: whether it is on the meta device.
        """
        fill = None if own.constant is None else own.constant * factor
        return cls(factor, std if is_meta else own.rms * factor, fill)

    def drawn_anew(self, wanted: bool, std: float) -> Init:
        """Return, if `wanted`, a plan that draws the tensor from N(0, std^2); else this plan."""
        return replace(self, redraw=True, factor=1.0, std=std) if wanted else self


def measure_own_init(
    target: Mapping[str, torch.Tensor],
    base: Mapping[str, torch.Tensor],
    growth: WidthGrowth,
    like: Mapping[str, Hashable],
) -> dict[str, OwnInit]:
    """Measure how the model's own init scales with width, from one draw of the base and one of the target.

    Args:
        target: the target's parameters by name.
        base: the base's parameter for each of them.
        growth: growth exponents of dims.
        like: for each parameter, what its init may follow, such as the growth of its fan_in. Tensors whose names differ
            in numbers only, and that agree in this, share one estimate.

    Returns:
        The own init of each parameter in `like`.
    """
    exponents = {name: growth.parameter(name, tuple(p.shape)) for name, p in target.items()}
    pools: dict[Hashable, list[str]] = {}
    for name in like:
        pools.setdefault((_pattern(name), exponents[name], like[name]), []).append(name)
    found: dict[str, OwnInit] = {}
    for names in pools.values():
        draws = [(_Draw.of(target[name]), _Draw.of(base[name])) for name in names]
        measured, error = _pooled(draws, growth.width_ratio)
        exponent, snapped = _snapped(measured, error, exponents[names[0]])
        for name, (ours, theirs) in zip(names, draws, strict=True):
            constant = _constant(target[name])
            found[name] = OwnInit(exponent, measured, error, snapped, ours.rms, theirs.rms, constant)
    return found


def carried_own_init(
    like: tuple[Mapping[str, torch.Tensor], Mapping[str, torch.Tensor]],
    base: Mapping[str, torch.Tensor],
    growth: WidthGrowth,
    fan_in: Mapping[str, Hashable],
) -> dict[str, OwnInit]:
    """Measure how a model's own init scales on two tiny instances with weights, for a model that has none.

    Layers are matched by name up to numbers, so the instances may have fewer of them. The RMS entry at the base width
    follows from the small instance's by the same law.

    Args:
        like: the parameters of a small and of a larger instance.
        base: the base's parameters, of which shapes alone are known.
        growth: growth exponents of dims from base to target.
        fan_in: for each parameter, what its init may follow: the growth of its fan_in.

    Raises:
        InvalidInputError: the instances have no parameter like one of the model.
    """
    small, large = like
    between = SizeGrowth(large, pair_parameters(large, small))
    patterns = {_pattern(name): name for name in reversed(list(small))}
    twins = {name: name if name in small else patterns.get(_pattern(name)) for name in base}
    if missing := [name for name, twin in twins.items() if twin is None]:
        raise InvalidInputError(
            f"init=InitLike(...): the instances have no parameter like {missing[0]!r} of the model."
        )
    measured = measure_own_init(large, small, between, {twin: fan_in.get(name) for name, twin in twins.items() if twin})
    grown = [b / s for n, t in twins.items() if t for b, s in zip(base[n].shape, small[t].shape, strict=True)]
    ratio = max(grown, key=lambda r: abs(math.log(r)), default=1.0)
    found = {}
    for name, twin in twins.items():
        own = measured[str(twin)]
        at_base = own.base_rms * ratio**-own.exponent
        found[name] = replace(own, base_rms=at_base, rms=at_base * growth.width_ratio**-own.exponent)
    return found


def _pattern(name: str) -> str:
    """Return a name with "*" in place of each number."""
    return re.sub(r"\d+", "*", name)


def sampled_entries(tensor: torch.Tensor) -> torch.Tensor:
    """Return at most 2^17 entries of a tensor as float64, spread over all rows and columns, without copying it."""
    flat = tensor.detach().reshape(-1)
    stride = max(1, flat.numel() // SAMPLE)
    while stride > 1 and math.gcd(stride, tensor.shape[-1]) > 1:
        stride += 1
    return flat[::stride].double()


def rms(tensor: torch.Tensor) -> float:
    """Return the root mean square of a tensor's entries; 0 for a tensor without values."""
    return 0.0 if tensor.is_meta else _Draw.of(tensor).rms


def _constant(tensor: torch.Tensor) -> float | None:
    """Return the value of all entries where they are equal, else None."""
    entries = sampled_entries(tensor)
    return float(entries[0]) if entries.numel() and bool((entries == entries[0]).all()) else None


class _Draw(NamedTuple):
    """The RMS entry of one tensor as initialised, and the variance of its logarithm over random seeds."""

    rms: float
    log_variance: float

    @classmethod
    def of(cls, tensor: torch.Tensor) -> _Draw:
        """Estimate RMS entry and the variance of its logarithm from the entries of one tensor."""
        squares = sampled_entries(tensor).square()
        second = float(squares.mean()) if squares.numel() else 0.0
        if not second:
            return cls(0.0, 0.0)
        kurtosis = float(squares.square().mean()) / second**2
        return cls(math.sqrt(second), max(kurtosis - 1.0, 0.0) / (4.0 * squares.numel()))


def _pooled(draws: list[tuple[_Draw, _Draw]], scale: float) -> tuple[float, float]:
    """Return the exponent x of RMS entries ~ scale^-x, and its sampling error.

    Args:
        draws: for each of several like tensors its draw in the target and in the base; precise ones weigh more.
        scale: the width ratio.
    """
    if scale == 1.0:
        return 0.0, 0.0
    log_m, total, weights = math.log(scale), 0.0, 0.0
    for ours, theirs in draws:
        if ours.rms and theirs.rms:
            weight = 1.0 / (ours.log_variance + theirs.log_variance + 1e-12)
            total += weight * math.log(theirs.rms / ours.rms)
            weights += weight
    return (total / weights / log_m, weights**-0.5 / abs(log_m)) if weights else (0.0, 0.0)


def _snapped(measured: float, error: float, growth: tuple[float, ...]) -> tuple[float, bool]:
    """Round a measured exponent if a round one lies within its sampling error; return it and whether it was rounded.

    Round are 0, e/2 and e for a growth exponent e, and then all quarters of e.

    Args:
        measured: the measured exponent.
        error: its sampling error.
        growth: the growth exponents of the tensor's dims.
    """
    reach = RESOLUTION + SIGMAS * error
    usual = {0.0, *(k / 2 * e for e in {1.0, *growth} for k in (1, 2))}
    quarters = {k / 4 * e for e in {1.0, *growth} for k in range(-8, 9)}
    for candidates, within in ((usual, 0.75 * reach), (usual | quarters, reach)):
        nearest = min(candidates, key=lambda x: (abs(x - measured), abs(x)))
        if abs(nearest - measured) <= within:
            return nearest + 0.0, True
    return measured, False


def redraw_(tensor: torch.Tensor, std: float) -> None:
    """Draw normal entries of a standard deviation; zero tensors and all-zero rows (padding) stay zero."""
    empty = (tensor == 0).flatten(1).all(1) if tensor.ndim > 1 else tensor == 0
    tensor.normal_(0.0, std)
    tensor[empty] = 0.0


def initialise(module: torch.nn.Module, inits: Mapping[str, Init]) -> None:
    """Fill every parameter of a module as planned, from nothing: after `to_empty`, or to start again.

    Raises:
        InvalidInputError: a parameter was not planned, or its init is not known; nothing has been written then.
    """
    parameters = dict(module.named_parameters())
    for name in parameters:
        init = inits.get(name)
        if init is None:
            known = ", ".join(list(inits)[:3])
            raise InvalidInputError(f"init_weights: {name!r} is not a parameter of the plan, which has {known}, ...")
        if init.std is None and init.fill is None:
            raise InvalidInputError(
                f"init_weights: how {name!r} is initialised is not known, since the model was on the meta device.\n"
                f"  To fix: transform(..., init=InitLike(small, large)), two tiny instances with real weights."
            )
    with torch.no_grad():
        for name, parameter in parameters.items():
            inits[name].draw(parameter)

"""Measures how a model's own init scales with width, off its draws at two widths.

The law is RMS entry ~ m^-beta (m, the ratio of widths), for the random part of each tensor. beta follows from the code
of torch's layers where they drew the tensor; else it is pooled over like tensors, and rounded to a quarter of a growth
exponent where that lies within the sampling error. Structure, and what too few draws tell of, counts as right already.
"""

from __future__ import annotations

import math
import re
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from abcfx.errors import InvalidInputError
from abcfx.pairing.blocks import pair_parameters
from abcfx.pairing.widths import SizeGrowth, WidthGrowth
from abcfx.plan.draws import Draw, Law, is_from_torch, sampled_entries
from abcfx.plan.structure import SIGMAS

RESOLUTION = 1e-3
COARSE = 0.25  # sampling errors beyond this leave open which half of a growth exponent is meant
_DIMS_OF_INIT = slice(1, None), slice(1)  # fan_in, and fan_out, of a weight (out, in, *kernel)
DEPTH_RESOLUTION = 0.1  # one more block among four changes 1/sqrt(L) by as much


@dataclass(frozen=True)
class OwnInit:
    """A measurement of how the init in the model's own code scales with width: random entries ~ m^-exponent.

    m is the width ratio.

    Attributes:
        exponent: the exponent of the width ratio m by which the tensor is initialised: rounded where that lies within
            the sampling error; the planned one for tensors without random entries, and where too few draws tell.
        measured: the exponent before rounding.
        error: its sampling error.
        snapped: whether it was rounded.
        draw: how the tensor was drawn in the model (the target).
        base_spread: RMS of the random entries in the base, around their mean; for a tensor that is not random, RMS of
            all entries.
        depth_error: sampling error of the logarithm of the ratio of the spreads in base and target.
    """

    exponent: float
    measured: float
    error: float
    snapped: bool
    draw: Draw
    base_spread: float
    depth_error: float = 0.0

    @property
    def depth_factor(self) -> float:
        """The factor that takes the dependence on depth, such as 1 / sqrt(2 L) for L blocks, out of a tensor's init.

        It is measured at the base's width, as the ratio of RMS entries; 1 if that is near 1, or may be so by accident.
        """
        ratio = self.base_spread / self.draw.spread if self.draw.spread and self.base_spread else 1.0
        return ratio if abs(math.log(ratio)) > max(DEPTH_RESOLUTION, SIGMAS * self.depth_error) else 1.0


def measure_own_init(
    target: Mapping[str, torch.Tensor],
    base: Mapping[str, torch.Tensor],
    growth: WidthGrowth,
    like: Mapping[str, Hashable],
    planned: Mapping[str, float],
) -> dict[str, OwnInit]:
    """Measure how a model's own init scales with width, from one draw of it and one of its smaller base.

    Args:
        target: the target's parameters by name.
        base: the base's parameter for each of them.
        growth: growth exponent of each dim: 0 if it keeps its size in a wider model, 1 if it grows with the width.
        like: for each parameter, what its init may follow: the growth of its fan_in. Tensors whose names differ in
            numbers only, and that agree in this, share one estimate.
        planned: the exponent b of the init m^-b that is planned for each parameter.

    Returns:
        The own init of each parameter in `like`.
    """
    exponents = {name: growth.parameter(name, tuple(p.shape)) for name, p in target.items()}
    pools: dict[Hashable, list[str]] = {}
    for name in like:
        pools.setdefault((_pattern(name), exponents[name], like[name]), []).append(name)
    found: dict[str, OwnInit] = {}
    for names in pools.values():
        draws = {name: _drawn_pair(target, base, name) for name in names}
        random = {name: pair for name, pair in draws.items() if all(_is_random(draw) for draw in pair)}
        explained = [
            {name: _of_fixed_sizes(base[name].shape, target[name].shape, exponents[name], dims) for name in random}
            for dims in _DIMS_OF_INIT
        ]
        for name, pair in draws.items():
            b = planned.get(name, 0.0)
            noise = math.sqrt(pair[0].log_variance + pair[1].log_variance)
            if name in random:
                measured, error, exponent, snapped, by = _law(random, explained, growth.width_ratio, exponents[name], b)
                spread = pair[1].spread * by.get(name, 1.0)
                found[name] = OwnInit(exponent, measured, error, snapped, pair[0], spread, noise)
                continue
            is_constant = all(draw.constant for draw in pair)
            exponent = _of_constants(pair, growth.width_ratio, exponents[name], b) if is_constant else b
            measured, error = _pooled(list(random.values()), growth.width_ratio)
            found[name] = OwnInit(exponent, measured, error, False, pair[0], pair[1].spread, noise)
    return found


def _of_fixed_sizes(base: Sequence[int], target: Sequence[int], growth: tuple[float, ...], dims: slice) -> float:
    """Return the factor on entries drawn as fan_in^-1/2 that comes from sizes which differ, but not with the width.

    Wider kernels are an example.

    Args:
        base: the shape in the smaller base.
        target: the shape in the model.
        growth: for each dim the exponent g with which its size grows as width_ratio^g; 0 for one that does not.
        dims: the dims that count.
    """
    sizes = list(zip(base, target, growth, strict=True))[dims]
    return 1.0 / math.sqrt(math.prod(large / small for small, large, grows in sizes if not grows and small))


def _law(
    random: Mapping[str, tuple[Draw, Draw]],
    explained: Sequence[Mapping[str, float]],
    scale: float,
    growth: tuple[float, ...],
    planned: float,
) -> tuple[float, float, float, bool, Mapping[str, float]]:
    """Find the law m^-x by which random tensors are drawn, x their exponent and m the width ratio.

    Args:
        random: for each of several like tensors its draw in the model and in its smaller base.
        explained: sets of factors on the base's draws, by name, for what fan_in or fan_out may explain beside the
            width. The first set is tried first that leaves a round exponent; without one none counts.
        scale: the width ratio.
        growth: the growth exponents of the tensors' dims.
        planned: the exponent by which the tensors are to scale.

    Returns:
        The measured exponent, its sampling error, the exponent, whether it was rounded, and the factors that count.
    """
    pairs = list(random.values())
    measured, error = _pooled(pairs, scale)
    exponent, snapped = _rounded(measured, error, growth, planned)
    for factors in () if snapped else explained:
        if any(factor != 1.0 for factor in factors.values()):
            rest, error = _pooled(pairs, scale, [factors[name] for name in random])
            nearest, is_round = _rounded(rest, error, growth, planned)
            if is_round:
                return rest, error, nearest, True, factors
    return measured, error, exponent, snapped, {}


def carried_own_init(
    like: tuple[Mapping[str, torch.Tensor], Mapping[str, torch.Tensor]],
    target: Mapping[str, torch.Tensor],
    base: Mapping[str, torch.Tensor],
    growth: WidthGrowth,
    fan_in: Mapping[str, Hashable],
    planned: Mapping[str, float],
) -> dict[str, OwnInit]:
    """Measure how a model's own init scales on two tiny instances with weights, for a model that has none.

    Layers are matched by name up to numbers, so the instances may have fewer of them. The RMS entry at the base width
    follows from the small instance's by the measured exponents.

    Args:
        like: the parameters of a small and of a larger instance.
        target, base: parameters of the model and its base, of which shapes alone are known.
        growth: growth exponents of dims from base to target.
        fan_in: for each parameter, what its init may follow: the growth of its fan_in.
        planned: the exponent b of the init m^-b that is planned for each parameter.

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
    of_twin = {twin: name for name, twin in twins.items() if twin}
    follows = {twin: fan_in.get(name) for twin, name in of_twin.items()}
    wanted = {twin: planned.get(name, 0.0) for twin, name in of_twin.items()}
    measured = measure_own_init(large, small, between, follows, wanted)
    grown = [b / s for n, t in twins.items() if t for b, s in zip(base[n].shape, small[t].shape, strict=True)]
    ratio = max(grown, key=lambda r: abs(math.log(r)), default=1.0)
    found = {}
    for name, twin in twins.items():
        own = measured[str(twin)]
        at_base = own.base_spread * ratio**-own.exponent
        spread = at_base * growth.width_ratio**-own.exponent
        found[name] = replace(own, base_spread=at_base, draw=own.draw.carried(spread, target[name].shape))
    return found


def weight_beside(parameters: Mapping[str, torch.Tensor], name: str) -> torch.Tensor | None:
    """Return the weight whose fan_in bounds what torch draws for a weight or bias; None if there is none.

    That is the weight of its layer; of recurrent layers, the one on the hidden state.

    Args:
        parameters: tensors by name; a bias lies beside its weight.
        name: name of the weight or bias.
    """
    path, _, last = name.rpartition(".")
    return parameters.get(f"{path}.{last.replace('bias', 'weight').replace('_ih_l', '_hh_l')}".lstrip("."))


def _pattern(name: str) -> str:
    """Return a parameter's name with "*" in place of each number, the same for like parameters of all blocks."""
    return re.sub(r"\d+", "*", name)


def _is_random(draw: Draw) -> bool:
    """Whether the tensor of this description, or a part of it, was drawn at random."""
    return draw.law in (Law.RANDOM, Law.ORTHOGONAL)


def _drawn_pair(target: Mapping[str, torch.Tensor], base: Mapping[str, torch.Tensor], name: str) -> tuple[Draw, Draw]:
    """Return descriptions of how one parameter was drawn at init in a model (target) and in its smaller base."""
    pair, weights = (target[name], base[name]), (weight_beside(target, name), weight_beside(base, name))
    ours, theirs = (Draw.of(tensor, weight) for tensor, weight in zip(pair, weights, strict=True))
    if 1 in (ours.count, theirs.count) and ours.constant != theirs.constant:
        each = [w is not None and is_from_torch(sampled_entries(p), w) for p, w in zip(pair, weights, strict=True)]
        if all(each) and weights[0] is not None and weights[1] is not None:
            counts = ours.count, theirs.count
            return Draw.of_torch(weights[0], counts[0], ours.rms), Draw.of_torch(weights[1], counts[1], theirs.rms)
    if ours.from_torch != theirs.from_torch:  # one looks like it by accident
        return Draw.of(pair[0]), Draw.of(pair[1])
    return ours, theirs


def _pooled(draws: Sequence[tuple[Draw, Draw]], scale: float, factors: Sequence[float] = ()) -> tuple[float, float]:
    """Return the exponent x of RMS entries ~ scale^-x, pooled over like tensors, and its sampling error.

    Args:
        draws: for each of several like tensors its draw in the target and in the base; precise ones weigh more.
        scale: the width ratio.
        factors: for each of the tensors a number that multiplies its draw in the base; none if all are 1.
    """
    if scale == 1.0:
        return 0.0, 0.0
    log_m, total, weights = math.log(scale), 0.0, 0.0
    for (ours, theirs), factor in zip(draws, factors or [1.0] * len(draws), strict=True):
        weight = 1.0 / (ours.log_variance + theirs.log_variance + 1e-12)
        total += weight * math.log(theirs.spread * factor / ours.spread)
        weights += weight
    return (total / weights / log_m, weights**-0.5 / abs(log_m)) if weights else (0.0, 0.0)


def _of_constants(pair: tuple[Draw, Draw], scale: float, growth: tuple[float, ...], planned: float) -> float:
    """Return the exponent e with which a constant that fills a tensor, such as d^-1/2, shrinks as width_ratio^-e.

    It is read off the constants in the model and its smaller base; where it is no round number, `planned` is returned.

    Args:
        pair: what the tensors of model and base hold, with the constant in each.
        scale: the width ratio.
        growth: for each dim of the tensor, the exponent g with which its size grows as width_ratio^g.
        planned: the exponent by which the tensor is to scale.
    """
    ours, theirs = pair
    if scale == 1.0 or ours.constant is None or theirs.constant is None or ours.constant * theirs.constant <= 0:
        return planned
    measured = math.log(theirs.constant / ours.constant) / math.log(scale)
    nearest = _nearest(measured, _round_exponents(growth))
    rounding = math.sqrt(ours.log_variance + theirs.log_variance) / abs(math.log(scale))
    return nearest if abs(nearest - measured) <= SIGMAS * rounding else planned


def _rounded(measured: float, error: float, growth: tuple[float, ...], planned: float) -> tuple[float, bool]:
    """Round a measured exponent if a round one lies within its sampling error; return it and whether it was rounded.

    Round are 0, e/2 and e for a growth exponent e, and then all quarters of e. The planned exponent is taken where the
    error leaves open which half of e is meant, and whether it is the planned one.

    Args:
        measured: the measured exponent.
        error: its sampling error.
        growth: the growth exponents of the tensor's dims.
        planned: the exponent by which the tensor is to scale.
    """
    reach = RESOLUTION + SIGMAS * error
    if reach > COARSE and abs(measured - planned) <= reach:
        return planned, True
    usual = {0.0, *(k / 2 * e for e in {1.0, *growth} for k in (1, 2))}
    for candidates, within in ((usual, 0.75 * reach), (usual | _round_exponents(growth), reach)):
        nearest = _nearest(measured, candidates)
        if abs(nearest - measured) <= within:
            return nearest + 0.0, True
    return measured, False


def _round_exponents(growth: tuple[float, ...]) -> set[float]:
    """Return the exponents that count as round: quarters of a tensor's growth exponents and of 1, from -2 to 2."""
    return {k / 4 * e + 0.0 for e in {1.0, *growth} for k in range(-8, 9)}


def _nearest(measured: float, candidates: set[float]) -> float:
    """Return the candidate nearest to a measured exponent; the smaller one of two."""
    return min(candidates, key=lambda x: (abs(x - measured), abs(x)))

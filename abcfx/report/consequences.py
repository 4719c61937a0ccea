"""What the exponents of one parameter come to, in plain numbers: multiplier, init, lr, eps, weight decay, group."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from abcfx.outcome import Outcome
    from abcfx.transformed import Transformed

DECAY_WORDS = {
    "independent": "so that lr x weight decay is the same at every width",
    "coupled": "as given, once its multiplier is absorbed",
    "fixed": "the given number, whatever the width",
}


def consequences(result: Transformed, name: str, learns: bool) -> list[str]:
    """One line for each number of a parameter's row, with the power of width that it is."""
    analysis, row = result.outcome, result.spec[name]
    lines = [_multiplier(result, name), _init(result, name)]
    if not learns:
        return [*lines, "lr: none, since it is frozen"]
    if row["role"] == "plain":
        lines.append(f"lr {row['lr']:.4g}: the base learning rate")
    else:
        lines.append(f"lr {_product(row['lr'], -row['c'], analysis, row, name, 'c')}")
    if row["eps"] is not None:
        words = _product(row["eps"], -row["g"], analysis, row, name, "g")
        lines.append(f"eps {words}; entries of its gradient are {_power(analysis, row['g'])}")
    if row["weight_decay"]:
        lines.append(f"weight decay {row['weight_decay']:.4g}, {DECAY_WORDS[analysis.options.overrides.decay_mode]}")
    group = next((i for i, g in enumerate(result.param_groups) if name in g["param_names"]), None)
    if group is not None:
        lines.append(f"It is in group {group}, for {row['optimizer']}.")
    return lines


def _m(analysis: Outcome) -> str:
    return "m" if analysis.fixed.widths.has_base else "n"


def _n(analysis: Outcome, row: Mapping[str, Any]) -> float:
    """The number that exponents of a row are powers of."""
    widths = analysis.fixed.widths
    return float(widths.width_ratio if widths.has_base else row["width"])


def _product(value: float, exponent: float, analysis: Outcome, row: Mapping[str, Any], name: str, key: str) -> str:
    """`0.00195 = 0.00781 x 4^-1`, with the power of the ratio of depths where there is one."""
    n, ratio = _n(analysis, row), analysis.depth.ratios.get(name, 1.0)
    by = analysis.depth.absorbed if analysis.options.absorbs else analysis.depth.inserted
    deep = -getattr(by[name], key) if name in by and ratio != 1.0 else 0.0
    powers = [f"{n:.4g}^{exponent:.3g}"] if exponent and n != 1.0 else []
    powers += [f"{ratio:.3g}^{deep:.3g} for {ratio:.3g} times the blocks"] if deep else []
    if not powers:
        return f"{value:.4g}, " + ("at any width" if not exponent else "as given, since m = 1")
    return " x ".join([f"{value:.4g} = {value / (n**exponent * ratio**deep):.4g}", *powers])


def _multiplier(result: Transformed, name: str) -> str:
    analysis, row = result.outcome, result.spec[name]
    if row["void"]:
        return "No multiplier: a norm follows at once and would divide it out again."
    if isinstance(row["multiplier"], Mapping):
        uses = ", ".join(f"{value:.4g} at {node}" for node, value in row["multiplier"].items())
        return f"multiplier, by use: {uses}"
    solved = next(iter(analysis.fixed.parameters[name].a.values()), 0.0)
    if analysis.options.absorbs and solved != row["a"]:
        return (
            f"multiplier 1: the factor {_m(analysis)}^{-solved:.3g} of the solution is absorbed, c and b carry it "
            f"(c = {row['c']:.3g}, b = {row['b']:.3g})"
        )
    if not row["a"]:
        return "multiplier 1 (a = 0)"
    a = result.plan[name].a
    return f"multiplier {row['multiplier']:.4g} = {_n(analysis, row):.4g}^{-next(iter(a.values())) + 0.0:.3g}"


def _init(result: Transformed, name: str) -> str:
    analysis, row, init = result.outcome, result.spec[name], result.inits[name]
    size, now = f"RMS entry {init.std:.4g}" if init.std is not None else "", _power(analysis, row["b"])
    own = row["own_init"]
    if init.std is None:
        return "init: not known, the model is on the meta device; init=InitLike(small, large) says how it is drawn"
    if init.redraw:
        return f"init: drawn anew, normal with standard deviation {init.std:.4g}, which is {now}"
    if init.fill is not None:
        times = "" if init.factor in (0.0, 1.0) else f", {init.factor:.4g} times the model's own"
        return f"init: every entry {init.fill + 0.0:.4g}{times}"
    if init.factor == 1.0:
        return f"init: the model's own draw, left as it is; {size}"
    was = f", which is {_power(analysis, own['exponent'])}," if own else ""
    return f"init: the model's own draw{was} times {init.factor:.4g}, so that it is {now}; {size}"


def _power(analysis: Outcome, exponent: float) -> str:
    return f"~ {_m(analysis)}^{-exponent:.3g}" if exponent else "O(1)"

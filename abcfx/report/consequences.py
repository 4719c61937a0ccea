"""The numbers of one parameter in words, each with the power of width that it is: multiplier, init, lr, eps, decay."""

from __future__ import annotations

from abcfx.exponents.depth import DepthExponents
from abcfx.outcome import Outcome
from abcfx.plan.spec import ParameterPlan

DECAY_WORDS = {
    "independent": "chosen so that lr x weight decay is the same at every width",
    "coupled": "as given, once its multiplier is absorbed",
    "fixed": "as given, at every width",
}


def consequences(outcome: Outcome, name: str, group: int | None) -> list[str]:
    """Write in words what follows for a parameter: one line each for multiplier, init, lr, eps and weight decay.

    Args:
        outcome: everything that one transform found.
        name: name of the parameter.
        group: index of its optimizer group; None if it is frozen.
    """
    plan = outcome.plan[name]
    power = _Powers(outcome, name)
    lines = [_multiplier(outcome, name, power), _init(plan, power)]
    for each in plan.segments:
        if not each.part.grows and each.std is not None:
            lines.append(f"init of columns {each.part}: RMS entry {each.std:.4g}, which is {power.order(each.b)}")
    if not plan.trainable:
        return [*lines, "lr: none, since it is frozen"]
    rate = f"{plan.lr:.4g}: the base learning rate"
    if plan.role != "plain":
        rate = power.product(plan.lr, -plan.c, "c", plan.shape_correction)
    if plan.shape_correction != 1.0:
        rate += (
            f" x {plan.shape_correction:.4g}, since {plan.optimizer}'s own factor on a matrix follows its real shape"
        )
    lines.append(f"lr {rate}")
    if plan.eps is not None:
        eps = power.product(plan.eps, -plan.g, "g")
        lines.append(f"eps {eps}, since entries of its gradient are {power.order(plan.g)}")
    if plan.weight_decay:
        lines.append(f"weight decay {plan.weight_decay:.4g}, {DECAY_WORDS[outcome.options.overrides.decay_mode]}")
    if group is not None:
        lines.append(f"It is in optimizer group {group}, for {plan.optimizer}.")
    return lines


class _Powers:
    """A writer of one parameter's numbers as powers of the width ratio m, or of its own width n without a base."""

    def __init__(self, outcome: Outcome, name: str) -> None:
        """Look up what a parameter's numbers are powers of: the width ratio or its width, and the ratio of depths."""
        header, depth, plan = outcome.header, outcome.depth, outcome.plan[name]
        self.symbol = "m" if header.has_base else "n"
        self.base = header.width_ratio if header.has_base else plan.width
        self._depth_ratio = depth.ratios.get(name, 1.0)
        by_name = depth.absorbed if outcome.options.absorbs else depth.inserted
        self._depth = by_name.get(name, DepthExponents())

    def order(self, exponent: float) -> str:
        """Write how a number with this exponent scales with width: `~ m^-0.5` (m, the width ratio), or O(1)."""
        return f"~ {self.symbol}^{-exponent:.3g}" if exponent else "O(1)"

    def product(self, value: float, exponent: float, key: str, other: float = 1.0) -> str:
        """Write a number as `0.00195 = 0.00781 x 4^-1`, with the power of the ratio of depths if there is one.

        Args:
            value: the number.
            exponent: its power of the width.
            key: "c" for a learning rate or "g" for an eps, which chooses the exponent of depth that belongs to it.
            other: a further factor of the number, which the caller writes.
        """
        ratio = self._depth_ratio
        deep = -(self._depth.c if key == "c" else self._depth.g) if ratio != 1.0 else 0.0
        powers = [f"{self.base:.4g}^{exponent:.3g}"] if exponent and self.base != 1.0 else []
        powers += [f"{ratio:.3g}^{deep:.3g} for {ratio:.3g} times the blocks"] if deep else []
        if not powers and other == 1.0:
            return f"{value:.4g}, " + ("at any width" if not exponent else "as given, since m = 1")
        return " x ".join([f"{value:.4g} = {value / (other * self.base**exponent * ratio**deep):.4g}", *powers])


def _multiplier(outcome: Outcome, name: str, power: _Powers) -> str:
    """Write one line about a parameter's multiplier m^-a (m, the width ratio): its value, or why there is none.

    `power` writes numbers as powers of the width.
    """
    plan = outcome.plan[name]
    if plan.void:
        return "No multiplier: a norm follows at once and would divide it out again."
    if plan.segments:
        by_columns = ", ".join(f"{each.multiplier:.4g} for {each.part}" for each in plan.segments)
        return f"multiplier, by columns: {by_columns}"
    if len(set(plan.multiplier.values())) > 1:
        uses = ", ".join(f"{value:.4g} at {node}" for node, value in plan.multiplier.items())
        return f"multiplier, by use: {uses}"
    a, multiplier = next(iter(plan.a.values()), 0.0), next(iter(plan.multiplier.values()), 1.0)
    solved = next(iter(outcome.fixed.parameters[name].a.values()), 0.0)
    if outcome.options.absorbs and solved != a:
        return (
            f"multiplier 1: the factor {power.symbol}^{-solved:.3g} is absorbed into init and rate "
            f"(b = {plan.b:.3g}, c = {plan.c:.3g})"
        )
    return f"multiplier {multiplier:.4g} = {power.base:.4g}^{-a + 0.0:.3g}" if a else "multiplier 1 (a = 0)"


def _init(plan: ParameterPlan, power: _Powers) -> str:
    """Write one line about how a parameter is initialised, and how that scales with width.

    `power` writes numbers as powers of the width.
    """
    init, now = plan.init, power.order(plan.b)
    if init.std is None:
        return "init: unknown, since the model is on the meta device; give init=InitLike(small, large)"
    is_mixed = init.own is not None and init.own.is_mixed
    what = "what is random in the model's own draw" if is_mixed else "the model's own draw"
    if init.redraw:
        drawn = f"{what} is drawn anew" if is_mixed else "drawn anew"
        return f"init: {drawn} from a normal distribution with standard deviation {init.std:.4g}, which is {now}"
    if init.fill is not None:
        times = "" if init.factor in (0.0, 1.0) else f", {init.factor:.4g} times the model's own"
        return f"init: every entry is {init.fill + 0.0:.4g}{times}"
    size = f"RMS entry {init.std:.4g}"
    if init.factor == 1.0:
        return f"init: the model's own draw, unchanged; {size}"
    if init.factor == init.whole:
        return f"init: the model's own draw times {init.factor:.4g}, the multiplier that is absorbed; {size}"
    was = f", which is {power.order(plan.own_init.exponent)}," if plan.own_init else ""
    return f"init: {what}{was} times {init.factor:.4g}, so that it is {now}; {size}"

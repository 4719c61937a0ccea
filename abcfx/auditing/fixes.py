"""The fix of one parameter, in the terms in which its user wrote it: factors on multiplier, init and rate."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction

from abcfx.auditing.target import TOLERANCE

LARGEST_DENOMINATOR = 64


@dataclass(frozen=True)
class Fix:
    """The factors that put one parameter right at the larger width; at the smaller one all stays as it is.

    Attributes:
        multiplier: factor on what is named: the logits of an attention, or what one use of a tied weight computes.
        output: factor on its output without the bias, which stands in place of `init` and `lr` together; None where
            these cannot be traded for one.
        init: factor on its init.
        lr: factor on its learning rate.
        weight_decay: factor on its weight decay.
        eps: factor on its eps.
    """

    multiplier: Mapping[str, float]
    output: float | None = None
    init: float = 1.0
    lr: float = 1.0
    weight_decay: float = 1.0
    eps: float = 1.0

    def to_dict(self) -> dict[str, object]:
        """Return the factors as plain data."""
        return {
            "multiplier": dict(self.multiplier),
            "output": self.output,
            "init": self.init,
            "lr": self.lr,
            "weight_decay": self.weight_decay,
            "eps": self.eps,
        }

    def sentence(self, width: int) -> str:
        """Say what to write, such as "at width 256: logits x 1/4, or init x 1/4 and lr x 1/4"."""
        parts = [f"{what} {times(factor)}" for what, factor in self.multiplier.items()]
        own = [
            f"{what} {times(factor)}"
            for what, factor in (("init", self.init), ("lr", self.lr), ("weight_decay", self.weight_decay))
            if factor != 1.0
        ]
        either = " and ".join([", ".join(own[:-1]), own[-1]] if len(own) > 1 else own)
        if self.output is not None:
            either = f"output (before the bias) {times(self.output)}; or {either}"
        parts += [either] * bool(either)
        parts += [f"eps {times(self.eps)}"] * (self.eps != 1.0)
        return f"at width {width}: {', '.join(parts)}"


def fix_of(
    differs: tuple[Mapping[str, float], float, float], width_ratio: float, rate_shift: float, learns: bool
) -> Fix:
    """Return the factors that undo what one parameter's exponents differ by.

    Args:
        differs: (a by what it multiplies, b, c), what is right minus what is there.
        width_ratio: width of the larger model over that of the smaller.
        rate_shift: by how much c changes where a multiplier m^-1 moves into the weight: 1 for Adam, 2 for SGD.
        learns: whether it has a learning rate.
    """
    a, b, c = differs
    factors = {what: width_ratio**-each for what, each in a.items() if abs(each) > TOLERANCE}
    init = width_ratio**-b if abs(b) > TOLERANCE else 1.0
    lr = width_ratio**-c if abs(c) > TOLERANCE else 1.0
    is_traded = learns and abs(b) > TOLERANCE and abs(c - rate_shift * b) <= TOLERANCE
    return Fix(factors, init if is_traded else None, init, lr)


def times(factor: float) -> str:
    """Write a factor as a person would: "x 1/4", "x 4", "x 0.354".

    >>> times(0.25), times(4.0), times(0.35355)
    ('x 1/4', 'x 4', 'x 0.354')
    """
    near = Fraction(factor).limit_denominator(LARGEST_DENOMINATOR)
    if near and abs(float(near) / factor - 1) < 1e-3 and 1 in (near.numerator, near.denominator):
        return f"x {near}"
    return f"x {factor:.3g}"


def power(exponent: float) -> str:
    """Write a power of the width ratio m: "m^0.5", "m^-1".

    >>> power(0.5), power(-1.0)
    ('m^0.5', 'm^-1')
    """
    return f"m^{round(exponent, 2) + 0.0:g}"

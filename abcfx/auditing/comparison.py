"""`Comparison`: all that is known of a model at two widths, from which the rows of an audit are made."""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from abcfx.auditing.faults import Fault, FaultKind, alike, deviations, faults
from abcfx.auditing.fixes import Fix, fix_of
from abcfx.auditing.reading import Rates
from abcfx.auditing.state import AuditState
from abcfx.auditing.target import TOLERANCE
from abcfx.exponents.fixed import FixedExponents
from abcfx.plan.own_init import OwnInit

DecayMode = Literal["independent", "coupled"]


@dataclass(frozen=True)
class Comparison:
    """All that is known of a model at two widths: what is there, what would be right, and who is guilty.

    Attributes:
        planned: roles of parameters, and the exponents of a plan in its table's own terms.
        state: the exponents that were read off.
        right: those that would be right, with the multipliers in the model's own forward.
        own_init: how each parameter is drawn.
        rates: how the numbers of its optimizer scale, of each parameter that trains.
        zeros: parameters that start as zeros.
        guilty: the fewest parameters and attention products whose change makes everything right.
        decay: what weight decay is to do: keep its effect per step ("independent"), or its number ("coupled").
        gradients: RMS of the gradient of each parameter of the larger model at init, where it could be measured.
        width: the larger width.
    """

    planned: FixedExponents
    state: AuditState
    right: AuditState
    own_init: Mapping[str, OwnInit]
    rates: Mapping[str, Rates]
    zeros: Set[str]
    guilty: tuple[str, ...]
    decay: DecayMode
    gradients: Mapping[str, float]
    width: int

    @property
    def width_ratio(self) -> float:
        """The width ratio m."""
        return self.planned.widths.width_ratio

    @cached_property
    def found(self) -> list[Fault]:
        """Everything that is wrong, whoever is guilty of it."""
        return faults(self.state, self.right, self.zeros)

    def alone(self, name: str) -> AuditState:
        """Return the state in which this parameter or attention is as it is, and everything else right."""
        return self.right.with_parameter(name, self.state)

    def fault_of(self, name: str) -> Fault | None:
        """Return the worst of what a guilty parameter or attention leads to, all others being right.

        Of those that differ in numbers in their names only, and deviate alike, the first stands for all.
        """
        first = self.first_alike(name)
        return self._faults[first] if first in self._faults else self._fault(name)

    def first_alike(self, name: str) -> str:
        """Return the first of the guilty ones that differ from this one in numbers only; the name itself if alone."""
        return next((names[0] for names in self._alike if name in names), name)

    @cached_property
    def _alike(self) -> list[tuple[str, ...]]:
        """The guilty parameters and attentions, those of several blocks that deviate alike together."""
        differing = deviations(self.state, self.right)
        return alike({name: differing[name] for name in self.guilty if name in differing})

    @cached_property
    def _faults(self) -> dict[str, Fault | None]:
        """The worst of what the first of each such group leads to."""
        return {names[0]: self._fault(names[0]) for names in self._alike}

    def _fault(self, name: str) -> Fault | None:
        """Return the worst of what one parameter or attention alone leads to."""
        own = faults(self.alone(name), self.right, self.zeros)
        uses = {name, *self.planned.dag.uses().get(name, ())}
        severity = list(FaultKind)
        own.sort(key=lambda fault: (severity.index(fault.kind), fault.name not in uses))
        return own[0] if own else None

    def multiplier(self, name: str) -> float:
        """Return x, where the model's own forward multiplies a weight by m^-x (m, the width ratio)."""
        decided = self.planned.parameters[name]
        total = decided.b + next(iter(decided.a.values()), 0.0) + decided.own
        return total - self.right.b[name] + 0.0

    def right_decay(self, name: str) -> float | None:
        """Return x for the right weight decay ~ m^x of a parameter (m, the width ratio); None if it has none."""
        rates = self.rates.get(name)
        if rates is None or rates.decay is None or name not in self.right.c:
            return None
        if self.decay == "coupled":
            return -rates.large.family.decay_shift(self.multiplier(name))
        return rates.large.family.independent_decay(self.right.c[name], self.right.b[name])

    def change(self, name: str) -> Fix:
        """Return the factors that put a parameter right, its weight decay included."""
        decided, learns = self.planned.parameters[name], name in self.state.c
        uses = {f"what `{self.planned.dag.node(n).path or n}` computes": self._missing(n) for n in decided.a}
        b = self.right.b[name] - self.state.b[name] if name not in self.zeros else 0.0
        c = self.right.c[name] - self.state.c[name] if learns else 0.0
        shift = self.rates[name].large.family.rate_shift(1.0) if name in self.rates else 1.0
        fix = fix_of((uses, b, c), self.width_ratio, shift, learns)
        return Fix(fix.multiplier, fix.output, fix.init, fix.lr, self._decay_factor(name))

    def _missing(self, node: str) -> float:
        """Return x for a multiplier m^-x that a layer node or attention product lacks (m, the width ratio)."""
        return self.right.a.get(node, 0.0) - self.state.a.get(node, 0.0)

    def change_of_attention(self, node: str) -> Fix:
        """Return the factor that puts the logits of an attention right."""
        return Fix({"the logits": self.width_ratio ** -self._missing(node)})

    def _decay_factor(self, name: str) -> float:
        """Return the factor on a parameter's weight decay that makes it right."""
        right = self.right_decay(name)
        decay = self.rates[name].decay if name in self.rates else None
        if right is None or decay is None or abs(right - decay) <= TOLERANCE:
            return 1.0
        return float(self.width_ratio ** (right - decay))

    @property
    def guilty_names(self) -> tuple[str, ...]:
        """The names of the guilty parameters, and of the modules of guilty attentions."""
        dag, parameters = self.planned.dag, self.planned.parameters
        return tuple(each if each in parameters else dag.node(each).path or each for each in self.guilty)

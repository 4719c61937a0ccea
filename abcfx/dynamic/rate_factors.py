"""Learning-rate factors that follow measured alignments: a linear program, solved again from its last optimum."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from abcfx.dynamic.sampling import SampledLayer
from abcfx.exponents.dag_program import DagProgram
from abcfx.outcome import Outcome
from abcfx.theory.parametrizations import Alignments, alignment_preset

DECIMALS = 9  # of c: a resumed run solves its LP from another start and has to find the same bits


class RateFactors:
    """Computes by which factors the planned learning rates are multiplied when the layers' alignments change.

    The exponent c of each learning rate n^-c (n: fan_in of the layer) is solved by a linear program from the
    alignments.

    Args:
        outcome: everything that `transform` found: the graph of layers, multiplier and init exponents, planned
            alignments.
        cap: "full" bounds alignments by the "full" preset (updates line up fully with inputs), and every c by its value
            there; None bounds neither.
        trust: largest factor; its inverse is the smallest.
        center: divide the factors by their geometric mean over matrices.
    """

    def __init__(self, outcome: Outcome, *, cap: str | None, trust: float, center: bool) -> None:
        self.cap, self.trust, self.center = cap, trust, center
        self._parameters = outcome.fixed.parameters
        self._full = outcome.fixed.aligned(alignment_preset("full"))
        planned = DagProgram(outcome.fixed, outcome.alignments).solve().c
        self._planned = {name: round(c, DECIMALS) for name, c in planned.items()}
        caps = DagProgram(outcome.fixed, self._full).solve().c if cap == "full" else None
        self._program = DagProgram(outcome.fixed, outcome.alignments, caps)

    def solve(self, alignment: Mapping[str, Alignments]) -> dict[str, float]:
        """Return the learning-rate exponent c of every weight by name, given the alignment exponents of every layer.

        Alignment is 1/2 if updates and inputs (the factors of dW x) are independent, and 1 if they line up fully.
        """
        if self.cap == "full":
            alignment = {node: Alignments(*map(min, terms, self._full[node])) for node, terms in alignment.items()}
        return {name: round(c, DECIMALS) for name, c in self._program.rates(alignment).items()}

    def factors(self, layers: Sequence[SampledLayer], c: Mapping[str, float]) -> dict[str, float]:
        """Return for every matrix the factor n^-(c - planned c) on its planned learning rate, with n its fan_in.

        With `center` the factors are divided by their geometric mean; then they are clipped to [1 / trust, trust].

        Args:
            layers: the measured layers, with their parameters and fan_in.
            c: solved learning-rate exponent of each weight.

        Returns:
            Parameter name -> factor. Layers whose fan_in does not grow with the width, such as embeddings, are left
            out.
        """
        # A layer that sums over no dim that grows has no alignment in its constraints: embeddings keep their rate.
        logs = {
            layer.parameter: (self._planned[layer.parameter] - c[layer.parameter]) * math.log(layer.fan_in)
            for layer in layers
            if layer.parameter in c and self._parameters[layer.parameter].e_in > 0
        }
        mean = sum(logs.values()) / len(logs) if self.center and logs else 0.0
        limit = math.log(self.trust)
        return {name: math.exp(min(max(value - mean, -limit), limit)) for name, value in logs.items()}

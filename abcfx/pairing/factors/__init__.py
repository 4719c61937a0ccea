"""Which factors the dims of two instances of one architecture are made of, and which of them grow."""

from abcfx.capture.aten import Call, Trace, trace
from abcfx.pairing.factors.atoms import Dim, factors_of, has_segments, largest_ratio, sizes
from abcfx.pairing.factors.factoring import Factors, Problem, factor
from abcfx.pairing.factors.pairs import as_deep_as_base, factor_models

__all__ = [
    "Call",
    "Dim",
    "Factors",
    "Problem",
    "Trace",
    "as_deep_as_base",
    "factor",
    "factor_models",
    "factors_of",
    "has_segments",
    "largest_ratio",
    "sizes",
    "trace",
]  # fmt: skip

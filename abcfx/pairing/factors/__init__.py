"""Factors the dims of two instances of one architecture into parts that grow and parts that stay."""

from abcfx.pairing.factors.atoms import Dim, has_segments, index_map, largest_ratio, sizes
from abcfx.pairing.factors.factoring import factor
from abcfx.pairing.factors.pairs import as_deep_as_base, factor_models
from abcfx.pairing.factors.step import Factors, Problem

__all__ = [
    "Dim",
    "Factors",
    "Problem",
    "as_deep_as_base",
    "factor",
    "factor_models",
    "has_segments",
    "index_map",
    "largest_ratio",
    "sizes",
]  # fmt: skip

"""What has a name in this field: roles, the (a, b) tables of SP, NTK, muP and MFP, alignment presets.

Tables and presets are read from `data/named_parametrizations.json`; the learning-rate exponents c are never looked up,
the linear program finds them.
"""

from __future__ import annotations

import json
from functools import cache
from importlib.resources import files
from typing import Any, Literal, NamedTuple, TypeAlias, get_args

from abcfx.support.choices import choose

ParametrizationName: TypeAlias = Literal["mup", "sp", "ntk", "mfp"]
AlignmentPreset: TypeAlias = Literal["full", "no", "worst"]
PARAMETRIZATIONS: tuple[ParametrizationName, ...] = get_args(ParametrizationName)
ALIGNMENT_PRESETS: tuple[AlignmentPreset, ...] = get_args(AlignmentPreset)

MATRIX_ROLES = ("embedding", "hidden", "readout")
ROLES = (*MATRIX_ROLES, "vector", "scalar", "plain")


class Alignments(NamedTuple):
    """Alignment exponents of one layer: of dW x0 (`alpha`), of W0 dx (`omega`), of dW dx (`u`)."""

    alpha: float
    omega: float
    u: float


@cache
def _data() -> dict[str, Any]:
    return dict(json.loads((files("abcfx.data") / "named_parametrizations.json").read_text()))


def named_exponents(parametrization: str) -> dict[str, tuple[float, float]]:
    """(a, b) of each matrix role in a named parametrization, for a width that grows with exponent 1 in m."""
    name = choose("parametrization", parametrization, PARAMETRIZATIONS)
    table = _data()["parametrizations"][name]
    return {role: (table["a"][i], table["b"][i]) for i, role in enumerate(MATRIX_ROLES)}


def alignment_preset(preset: str) -> tuple[Alignments, Alignments]:
    """Alignments of a named preset: (of every layer, of a readout). Sources and meaning: theory 1.1 in docs."""
    row = _data()["alignment_presets"][choose("alignment", preset, ALIGNMENT_PRESETS)]
    inner = Alignments(row["alpha"], row["omega"], row["u"])
    return inner, inner._replace(omega=row["omega_readout"])

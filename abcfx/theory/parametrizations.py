"""Named roles, the tables of (a, b) of SP, NTK, muP and MFP, and alignment presets.

Tables and presets are read from `data/named_parametrizations.json`. The learning-rate exponents c are looked up
nowhere: the linear program finds them.
"""

from __future__ import annotations

import json
from functools import cache
from importlib.resources import files
from typing import Literal, NamedTuple, TypeAlias, TypedDict, get_args

from abcfx.support.choices import choose

ParametrizationName: TypeAlias = Literal["mup", "sp", "ntk", "mfp"]
AlignmentPreset: TypeAlias = Literal["full", "no", "worst"]
PARAMETRIZATIONS: tuple[ParametrizationName, ...] = get_args(ParametrizationName)
ALIGNMENT_PRESETS: tuple[AlignmentPreset, ...] = get_args(AlignmentPreset)

MATRIX_ROLES = ("embedding", "hidden", "readout")
ROLES = (*MATRIX_ROLES, "vector", "scalar", "plain")


class Alignments(NamedTuple):
    """Alignment exponents of one layer: a product that sums over fan_in terms grows like fan_in to this power.

    Attributes:
        alpha: of dW x, the update times the initial input.
        omega: of W dx, the initial weight times the change of the input.
        u: of dW dx, the update times the change of the input.
    """

    alpha: float
    omega: float
    u: float


class _Table(TypedDict):
    a: list[float]
    b: list[float]


class _Preset(TypedDict):
    alpha: float
    omega: float
    u: float
    omega_readout: float


class _Data(TypedDict):
    parametrizations: dict[str, _Table]
    alignment_presets: dict[str, _Preset]


@cache
def _data() -> _Data:
    data: _Data = json.loads((files("abcfx.data") / "named_parametrizations.json").read_text())
    return data


def named_exponents(parametrization: str) -> dict[str, tuple[float, float]]:
    """Look up (a, b) of each matrix role in a named parametrization, for a width that grows like m.

    Args:
        parametrization: "mup", "sp", "ntk" or "mfp".

    Returns:
        (a, b) by role: "embedding", "hidden", "readout".

    Raises:
        InvalidInputError: the name is not known.

    >>> named_exponents("muP")["hidden"]
    (0.0, 0.5)
    """
    name = choose("parametrization", parametrization, PARAMETRIZATIONS)
    table = _data()["parametrizations"][name]
    return {role: (table["a"][i], table["b"][i]) for i, role in enumerate(MATRIX_ROLES)}


def alignment_preset(preset: str) -> tuple[Alignments, Alignments]:
    """Look up the alignments of a named preset (Everett et al. 2024, arXiv 2407.05872).

    Args:
        preset: "full", "no" or "worst".

    Returns:
        Alignments of every other layer, and those of a readout.

    Raises:
        InvalidInputError: the name is not known.
    """
    row = _data()["alignment_presets"][choose("alignment", preset, ALIGNMENT_PRESETS)]
    inner = Alignments(row["alpha"], row["omega"], row["u"])
    return inner, inner._replace(omega=row["omega_readout"])

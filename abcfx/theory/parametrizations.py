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
    """The alignment exponents of one layer: a product that sums over fan_in terms grows like fan_in to this power.

    Attributes:
        alpha: exponent of dW x, the update times the initial input.
        omega: exponent of W dx, the initial weight times the change of the input.
        u: exponent of dW dx, the update times the change of the input.
    """

    alpha: float
    omega: float
    u: float


class _Table(TypedDict):
    """A named parametrization as it is stored: exponents a and b of embedding, hidden and readout, in that order."""

    a: list[float]
    b: list[float]


class _Preset(TypedDict):
    """A preset of alignment exponents as it is stored: alpha, omega and u of every layer, and omega of a readout."""

    alpha: float
    omega: float
    u: float
    omega_readout: float


class _Data(TypedDict):
    """The content of the JSON file with named parametrizations and alignment presets."""

    parametrizations: dict[str, _Table]
    alignment_presets: dict[str, _Preset]


@cache
def _data() -> _Data:
    """Read the named parametrizations and alignment presets from the JSON file in the package, once."""
    data: _Data = json.loads((files("abcfx.data") / "named_parametrizations.json").read_text())
    return data


def named_exponents(parametrization: str) -> dict[str, tuple[float, float]]:
    """Look up the exponents (a, b) of each role of matrices in a named parametrization such as muP.

    A matrix has the multiplier m^-a and the init m^-b, where width grows like m.

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
    """Look up a named preset of alignments: how strongly updates line up with inputs.

    Source: Everett et al. 2024, arXiv 2407.05872.

    Args:
        preset: "full", "no" or "worst".

    Returns:
        The exponents (alpha, omega, u) of an inner layer, and those of a readout.

    Raises:
        InvalidInputError: the name is not known.
    """
    row = _data()["alignment_presets"][choose("alignment", preset, ALIGNMENT_PRESETS)]
    inner = Alignments(row["alpha"], row["omega"], row["u"])
    return inner, inner._replace(omega=row["omega_readout"])

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


class PresetAlignments(NamedTuple):
    """The alignments that a named preset gives to each kind of layer.

    Attributes:
        inner: those of an inner layer.
        readout: those of a readout.
        narrow: those of an inner layer that has few outputs however many inputs it has. Updates of the layers before it
            come through its few rows, so that the changes of its input line up with them.
    """

    inner: Alignments
    readout: Alignments
    narrow: Alignments

    @classmethod
    def same(cls, alignments: Alignments) -> PresetAlignments:
        """Return a preset that gives the same alignments to every layer."""
        return cls(alignments, alignments, alignments)

    def of(self, role: str, narrowing: float) -> Alignments:
        """Return the alignments of a layer.

        Args:
            role: its role.
            narrowing: 0 where fan_out grows as fan_in does, 1 where it does not grow, or a number in between.
        """
        if role == "readout":
            return self.readout
        omega = self.inner.omega + narrowing * (self.narrow.omega - self.inner.omega)
        return self.inner._replace(omega=omega)


class _Table(TypedDict):
    """A named parametrization as it is stored: exponents a and b of embedding, hidden and readout, in that order."""

    a: list[float]
    b: list[float]


class _Preset(TypedDict):
    """An alignment preset as it is stored: exponents of every layer, and omega of a readout and of a narrow layer."""

    alpha: float
    omega: float
    u: float
    omega_readout: float
    omega_narrow: float


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


def alignment_preset(preset: str) -> PresetAlignments:
    """Look up a named preset of alignments: how strongly updates line up with inputs.

    Source: Everett et al. 2024, arXiv 2407.05872.

    Args:
        preset: "full", "no" or "worst".

    Returns:
        The exponents (alpha, omega, u) of an inner layer, of a readout, and of an inner layer with few outputs.

    Raises:
        InvalidInputError: the name is not known.
    """
    row = _data()["alignment_presets"][choose("alignment", preset, ALIGNMENT_PRESETS)]
    inner = Alignments(row["alpha"], row["omega"], row["u"])
    readout, narrow = (inner._replace(omega=row[name]) for name in ("omega_readout", "omega_narrow"))
    return PresetAlignments(inner, readout, narrow)

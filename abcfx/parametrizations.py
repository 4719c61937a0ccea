"""What has a name in this field: the (a, b) tables of SP, NTK, muP and MFP, alignment presets, optimizer families.

Tables and presets are read from `data/named_parametrizations.json`; the learning-rate exponents c are never looked up,
the linear program finds them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any, NamedTuple

from abcfx.errors import InvalidInputError

MATRIX_ROLES = ("embedding", "hidden", "readout")
ROLES = (*MATRIX_ROLES, "vector", "scalar", "plain")


class Alignment(NamedTuple):
    """Alignment exponents of one layer: of dW x0 (`alpha`), of W0 dx (`omega`), of dW dx (`u`)."""

    alpha: float
    omega: float
    u: float


@dataclass(frozen=True)
class Family:
    """How large the update of an optimizer is, before the learning rate (docs, "Optimizers").

    `update`: "sign" (entries O(1): Adam, Lion), "gradient" (entries ~ the gradient: SGD), "relative" (entries ~ RMS of
    the weight: Adafactor, LAMB). `absorb`: how many times a moves into c when a multiplier m^-a moves into the weight.
    """

    name: str
    update: str
    absorb: int
    has_eps: bool
    decoupled_decay: bool

    def rate_shift(self, a: float) -> float:
        """What absorbing a multiplier m^-a adds to c."""
        return self.absorb * a

    def decay_shift(self, a: float) -> float:
        """What absorbing a multiplier m^-a adds to the exponent of m in weight_decay = m^shift, with lr moved along."""
        if self.update == "sign":
            return (1 if self.decoupled_decay else 2) * a
        return 2.0 * a if self.update == "gradient" else 0.0


_SIGN = {
    name: Family(name, "sign", 1, has_eps, decoupled)
    for name, has_eps, decoupled in (
        ("adam", True, False),
        ("adamw", True, True),
        ("adamax", True, False),
        ("nadam", True, False),
        ("radam", True, False),
        ("rmsprop", True, False),
        ("lion", False, True),
        ("sign", False, True),
    )
}
FAMILIES: dict[str, Family] = {
    **_SIGN,
    "sgd": Family("sgd", "gradient", 2, False, False),
    "adafactor": Family("adafactor", "relative", 0, False, True),
}


def family(optimizer: str) -> Family:
    """The family of an optimizer given by name. Raises InvalidInputError for a name without a known update size."""
    found = FAMILIES.get(optimizer.lower()) if isinstance(optimizer, str) else None
    if found is None:
        raise InvalidInputError(
            f"optimizer={optimizer!r} has no known update size, so its learning rates cannot be solved.\n"
            f"Expected one of: {', '.join(sorted(FAMILIES))}."
        )
    return found


@cache
def _data() -> dict[str, Any]:
    return dict(json.loads((files("abcfx.data") / "named_parametrizations.json").read_text()))


def named_exponents(parametrization: str) -> dict[str, tuple[float, float]]:
    """(a, b) of each matrix role in a named parametrization, for a width that grows with exponent 1 in m."""
    tables: Mapping[str, Any] = _data()["parametrizations"]
    if parametrization not in tables:
        raise InvalidInputError(
            f"parametrization={parametrization!r} is not known; expected one of {', '.join(tables)}."
        )
    table = tables[parametrization]
    return {role: (table["a"][i], table["b"][i]) for i, role in enumerate(MATRIX_ROLES)}


def alignment_preset(preset: str) -> tuple[Alignment, Alignment]:
    """Alignments of a named preset: (of every layer, of a readout). Sources and meaning: theory 1.1 in docs."""
    presets: Mapping[str, Any] = _data()["alignment_presets"]
    if preset not in presets:
        known = ", ".join(presets)
        raise InvalidInputError(f"alignment={preset!r} is not known; expected one of {known}, or (alpha, omega, u).")
    row = presets[preset]
    inner = Alignment(row["alpha"], row["omega"], row["u"])
    return inner, inner._replace(omega=row["omega_readout"])

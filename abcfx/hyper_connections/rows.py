"""Plain rows of a diagnosis: the numbers that were measured, their slopes over width, and the verdicts."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

from abcfx.support.verdict import CheckRow, Verdict

OPTIMIZERS = ("sgd", "adam")  # whose steps the logit update follows
SPREADS = (1.0, 3.0)  # standard deviations of the logits that are drawn without a model
TOLERANCE, SIGMAS = 0.1, 2.0  # a slope agrees with its law within the tolerance and so many standard errors


class Diagnostic(str, Enum):
    """The six diagnostics, in the order in which they are reported."""

    SINKHORN_ERROR = "sinkhorn_error"
    SPECTRUM = "spectrum"
    QUOTIENT_JACOBIAN = "quotient_jacobian"
    SENSITIVITY = "sensitivity"
    LOGIT_UPDATE = "logit_update"
    GATES = "gate_statistics"

    def __str__(self) -> str:
        return self.value

    @property
    def words(self) -> str:
        """The diagnostic in words, without its number."""
        return _WORDS[self]

    @property
    def heading(self) -> str:
        """The diagnostic in words, after its number."""
        return f"{list(Diagnostic).index(self) + 1} {self.words}"


_WORDS = {
    Diagnostic.SINKHORN_ERROR: "Sinkhorn error",
    Diagnostic.SPECTRUM: "spectrum of the mix",
    Diagnostic.QUOTIENT_JACOBIAN: "quotient Jacobian",
    Diagnostic.SENSITIVITY: "dynamic sensitivity",
    Diagnostic.LOGIT_UPDATE: "logit update per step",
    Diagnostic.GATES: "gates",
}


class Quantity(NamedTuple):
    """One of the numbers that a diagnostic measures.

    Attributes:
        diagnostic: the diagnostic.
        name: the number's name, such as "worst" or "mix_typical".
        optimizer: "sgd" or "adam", where the number belongs to a step of an optimizer.
        spread: standard deviation of the drawn logits, where the number was measured on logits without a model.
    """

    diagnostic: Diagnostic
    name: str
    optimizer: str = ""
    spread: float | None = None

    @property
    def label(self) -> str:
        """The quantity as tables and figures name it: "adam weight", "worst at logit std 3"."""
        label = f"{self.optimizer} {self.name}" if self.optimizer else self.name
        return label if self.spread is None else f"{label} at logit std {self.spread:g}"


@dataclass(frozen=True)
class Measurement:
    """One quantity at one width, or in one hyper-connection of a model, summarised over tokens or matrices.

    Attributes:
        of: the quantity.
        width: width d of a stream; None where the width plays no part.
        module: path of the hyper-connection in the user's model; None for drawn ones.
        mean, sd, smallest, largest: over the samples.
        samples: number of tokens or matrices.
    """

    of: Quantity
    width: int | None
    module: str | None
    mean: float
    sd: float
    smallest: float
    largest: float
    samples: int

    @property
    def diagnostic(self) -> Diagnostic:
        """The diagnostic that the quantity belongs to."""
        return self.of.diagnostic

    @property
    def quantity(self) -> str:
        """The quantity's label."""
        return self.of.label

    @property
    def place(self) -> int | str | None:
        """The module's path, or the width of a drawn hyper-connection."""
        return self.module or self.width

    def to_dict(self) -> dict[str, object]:
        """Return the measurement as plain data."""
        return {
            "diagnostic": self.diagnostic.value,
            "quantity": self.quantity,
            "width": self.width,
            "module": self.module,
            "mean": self.mean,
            "sd": self.sd,
            "smallest": self.smallest,
            "largest": self.largest,
            "samples": self.samples,
        }


@dataclass(frozen=True)
class LawSlope:
    """Slope of log2 of a quantity over log2 width, beside the slope that the init predicts.

    Attributes:
        of: the quantity.
        mean: mean slope over samples; None for a quantity that is zero somewhere, and has no logarithm there.
        error: standard error of the mean.
        law: the predicted slope.
    """

    of: Quantity
    mean: float | None
    error: float
    law: float

    @property
    def diagnostic(self) -> Diagnostic:
        """The diagnostic that the quantity belongs to."""
        return self.of.diagnostic

    @property
    def quantity(self) -> str:
        """The quantity's label."""
        return self.of.label

    @property
    def agrees(self) -> bool:
        """Whether the measured slope is the predicted one, within its error."""
        return self.mean is None or abs(self.mean - self.law) <= TOLERANCE + SIGMAS * self.error

    def to_dict(self) -> dict[str, object]:
        """Return the slope as plain data."""
        names = {"diagnostic": self.diagnostic.value, "quantity": self.quantity}
        return names | {"mean": self.mean, "error": self.error, "law": self.law, "agrees": self.agrees}


@dataclass(frozen=True, kw_only=True)
class DiagnosticRow(CheckRow):
    """Verdict of one diagnostic, on drawn hyper-connections or on one hyper-connection of a model.

    Attributes:
        diagnostic: the diagnostic.
        module: path of the hyper-connection in the user's model; None for drawn ones.
    """

    diagnostic: Diagnostic
    module: str | None = None


def diagnostic_row(
    diagnostic: Diagnostic, verdict: Verdict, reason: str, fix: str = "", module: str | None = None
) -> DiagnosticRow:
    """Make the row of a verdict; what to change is told unless the verdict is PASS."""
    name = diagnostic.heading + (f" of {module}" if module else "")
    fix = "" if verdict is Verdict.PASS else fix
    return DiagnosticRow(name=name, verdict=verdict, reason=reason, fix=fix, diagnostic=diagnostic, module=module)

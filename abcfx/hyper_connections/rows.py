"""Plain rows of a diagnosis of hyper-connections: measured numbers, their slopes over width, and verdicts.

A hyper-connection keeps n residual streams instead of one; weights computed from them read, write and mix them.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

from abcfx.support.verdict import CheckRow, Verdict

OPTIMIZERS = ("sgd", "adam")  # whose steps the logit update follows
SPREADS = (1.0, 3.0)  # standard deviations of the logits that are drawn without a model
TOLERANCE, SIGMAS = 0.1, 2.0  # a slope agrees with its law within the tolerance and so many standard errors


class Diagnostic(str, Enum):
    """The six diagnostics of hyper-connections (residual connections over n mixed streams), in the order of the report.

    SINKHORN_ERROR: error of the sums of a mixing matrix. SPECTRUM: its singular values. QUOTIENT_JACOBIAN: its response
    to its logits. SENSITIVITY: how gates and matrix respond to the streams. LOGIT_UPDATE: how far an optimizer step
    moves the logits. GATES: means and saturation of the gates.
    """

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
        """The diagnostic of hyper-connections in words, such as "Sinkhorn error"."""
        return _WORDS[self]

    @property
    def heading(self) -> str:
        """The diagnostic of hyper-connections in words, after its number: "1 Sinkhorn error"."""
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
    """A key for one of the numbers that a diagnostic of hyper-connections measures.

    A hyper-connection keeps n residual streams instead of one; weights computed from them read, write and mix them.

    Attributes:
        diagnostic: the diagnostic.
        name: the number's name, such as "worst" or "mix_typical".
        optimizer: "sgd" or "adam", where the number belongs to a step of an optimizer, else "".
        spread: standard deviation of the random logits that the number was measured on; None if it was measured on
            tokens.
    """

    diagnostic: Diagnostic
    name: str
    optimizer: str = ""
    spread: float | None = None

    @property
    def label(self) -> str:
        """The name of the measured quantity in tables and figures, such as "adam weight" or "worst at logit std 3"."""
        label = f"{self.optimizer} {self.name}" if self.optimizer else self.name
        return label if self.spread is None else f"{label} at logit std {self.spread:g}"


@dataclass(frozen=True)
class Measurement:
    """One quantity at one width, or in one hyper-connection of a user's model, summarised over tokens or matrices.

    A hyper-connection keeps n residual streams instead of one; weights computed from them read, write and mix them.

    Attributes:
        of: the quantity: a diagnostic and the name of one of its numbers.
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
        """The diagnostic, such as "spectrum", that the measured number belongs to."""
        return self.of.diagnostic

    @property
    def quantity(self) -> str:
        """The name of the quantity as tables show it, such as "adam weight"."""
        return self.of.label

    @property
    def place(self) -> int | str | None:
        """Where it was measured: path of the module in a user's model, or width of a drawn one; None for neither."""
        return self.module or self.width

    def to_dict(self) -> dict[str, object]:
        """Return a dict: diagnostic, quantity, width, module, mean, sd, smallest, largest, samples."""
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
    """How a quantity of drawn hyper-connections grows with width (as width^slope), measured, and as theory predicts.

    A hyper-connection keeps n residual streams instead of one; weights computed from them read, write and mix them.

    Attributes:
        of: the quantity: a diagnostic and the name of one of its numbers.
        mean: measured slope, mean over samples; None for a quantity that is zero somewhere, and has no logarithm there.
        error: standard error of the mean.
        law: slope that is predicted from the scaling of the initial weights and of the learning rate.
    """

    of: Quantity
    mean: float | None
    error: float
    law: float

    @property
    def diagnostic(self) -> Diagnostic:
        """The diagnostic of hyper-connections, such as "spectrum", that the quantity belongs to."""
        return self.of.diagnostic

    @property
    def quantity(self) -> str:
        """The name of the quantity as tables show it, such as "adam weight"."""
        return self.of.label

    @property
    def agrees(self) -> bool:
        """Whether the measured exponent of width is within 0.1 plus two standard errors of its prediction, or None."""
        return self.mean is None or abs(self.mean - self.law) <= TOLERANCE + SIGMAS * self.error

    def to_dict(self) -> dict[str, object]:
        """Return the measured slope (the quantity grows like width^slope) as a dict.

        Its keys are diagnostic, quantity, mean, error, law (the predicted slope) and agrees.
        """
        names = {"diagnostic": self.diagnostic.value, "quantity": self.quantity}
        return names | {"mean": self.mean, "error": self.error, "law": self.law, "agrees": self.agrees}


@dataclass(frozen=True, kw_only=True)
class DiagnosticRow(CheckRow):
    """Verdict of one of six diagnostics of hyper-connections (residual connections over n mixed streams).

    A row also has `name`, `verdict`, `reason` and `fix` (what to change).

    Attributes:
        diagnostic: the diagnostic.
        module: path of the hyper-connection in the user's model; None for hyper-connections drawn at random.
    """

    diagnostic: Diagnostic
    module: str | None = None


def diagnostic_row(
    diagnostic: Diagnostic, verdict: Verdict, reason: str, fix: str = "", module: str | None = None
) -> DiagnosticRow:
    """Make the row with the verdict of one diagnostic of hyper-connections.

    A hyper-connection keeps n residual streams instead of one; weights computed from them read, write and mix them.

    Args:
        diagnostic: the diagnostic.
        verdict: its outcome.
        reason: the numbers that decided it, in words.
        fix: what to change; left out of the row if the verdict is PASS.
        module: path of the hyper-connection in a user's model; None for drawn ones.
    """
    name = diagnostic.heading + (f" of {module}" if module else "")
    fix = "" if verdict is Verdict.PASS else fix
    return DiagnosticRow(name=name, verdict=verdict, reason=reason, fix=fix, diagnostic=diagnostic, module=module)

"""Verdicts on the numbers of six diagnostics of hyper-connections: growth with width, limits, what to change.

A hyper-connection keeps n residual streams instead of one; weights computed from them read, write and mix them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal, TypeAlias

from torch import Tensor

from abcfx.hyper_connections.rows import (
    OPTIMIZERS,
    Diagnostic,
    DiagnosticRow,
    LawSlope,
    Quantity,
    diagnostic_row,
)
from abcfx.support.verdict import WORST_FIRST, Verdict

GeneratorInit: TypeAlias = Literal["mup", "fan_in", "constant", "zero"]
# the exponent b of an init whose std is ~ d^-b; None for a generator that starts at zero
INIT_EXPONENTS: Mapping[GeneratorInit, float | None] = {"mup": 1.0, "fan_in": 0.5, "constant": 0.0, "zero": None}

# Of each pair, a number above the first is WEAK and a number above the second is FAIL.
SUMS = (1e-3, 1e-2)  # error of the sums of rows and columns
NORM = (1.01, 1.05)  # largest singular value of the mix
LEAK = (1e-3, 1e-2)
SATURATION = (0.1, 0.5)  # share of gates
STABLE_SLOPE = 0.1
TYPICAL = 1.0  # relative change of the mix per relative change of the streams
LOGIT_STEP = 0.5


def laws(init: GeneratorInit, rate_exponent: float) -> dict[Quantity, float]:
    """Return for each quantity the slope over log2 width that theory predicts from scaling of init and learning rate.

    d is the width of a stream, D = n d for n streams, k the number of mixing values m of a token x.

    ||dm/dx|| ||x|| is ~ std (sqrt(D) + sqrt(k)) sqrt(D) in the worst direction and ~ std sqrt(D) in a typical one. One
    step of SGD changes W x by lr |x|^2, one of Adam by lr |x|_1, both ~ D. Scales learn from the mixing values, which
    are ~ std sqrt(D).

    A hyper-connection keeps n residual streams instead of one; weights computed from them read, write and mix them.

    Args:
        init: how the standard deviation of the generator W scales, the weight that computes m = W x / rms(x): "mup" (~
            1/d), "fan_in" (~ d^-1/2), "constant" or "zero".
        rate_exponent: c, where the learning rate of W is ~ d^-c.
    """
    found = {Quantity(Diagnostic.LOGIT_UPDATE, "weight", optimizer): 1 - rate_exponent for optimizer in OPTIMIZERS}
    found |= {Quantity(Diagnostic.LOGIT_UPDATE, "base", optimizer): 0.0 for optimizer in OPTIMIZERS}
    b = INIT_EXPONENTS[init]
    if b is not None:
        for part in ("mix", "read", "write"):
            found[Quantity(Diagnostic.SENSITIVITY, part)] = 1 - b
            found[Quantity(Diagnostic.SENSITIVITY, f"{part}_typical")] = 0.5 - b
        found[Quantity(Diagnostic.LOGIT_UPDATE, "scale", "sgd")] = 1 - 2 * b
        found[Quantity(Diagnostic.LOGIT_UPDATE, "scale", "adam")] = 0.5 - b
        found[Quantity(Diagnostic.GATES, "mix logits std")] = 0.5 - b
    return found


def judge_drawn(
    by_width: Mapping[int, Mapping[Quantity, Tensor]],
    by_spread: Mapping[Quantity, Tensor],
    slopes: Sequence[LawSlope],
    iters: int,
) -> Iterator[DiagnosticRow]:
    """Yield a row with the verdict of each of the six diagnostics on hyper-connections drawn at several widths.

    A hyper-connection keeps n residual streams instead of one; weights computed from them read, write and mix them.

    Args:
        by_width: measured numbers of every token, by width and quantity.
        by_spread: numbers measured on random logits of several standard deviations, by quantity.
        slopes: for each quantity, the slope of its log2 over log2 width, measured and predicted.
        iters: number of Sinkhorn iterations (each scales rows, then columns, to the sum 1).
    """

    def at(diagnostic: Diagnostic, name: str, spread: float) -> Tensor:
        """Return the numbers of one quantity that were measured on random logits.

        Args:
            diagnostic, name: the quantity.
            spread: standard deviation of the logits.
        """
        return by_spread[Quantity(diagnostic, name, spread=spread)]

    at_init = float(by_width[max(by_width)][Quantity(Diagnostic.SINKHORN_ERROR, "worst")].max())
    error, large = (float(at(Diagnostic.SINKHORN_ERROR, "worst", spread).mean()) for spread in (1, 3))
    needed = [float(at(Diagnostic.SINKHORN_ERROR, "iterations needed", s).quantile(0.9)) for s in (1, 3)]
    yield diagnostic_row(
        Diagnostic.SINKHORN_ERROR,
        _grade_two((error, SUMS[0]), (large, SUMS[1])),
        f"rows and columns sum to 1 within {at_init:.1e} at init, {error:.1e} at logit std 1, {large:.1e} at 3; nine "
        f"of ten matrices need {needed[0]:.0f} and {needed[1]:.0f} iterations for {SUMS[0]:g}, there are {iters}",
        "more iterations, or smaller logits",
    )
    norm, large = (float(at(Diagnostic.SPECTRUM, "norm", spread).max()) for spread in (1, 3))
    yield diagnostic_row(
        Diagnostic.SPECTRUM,
        _grade_two((norm, NORM[0]), (large, NORM[1])),
        f"the mix makes streams larger by at most {norm:.4f} at logit std 1, {large:.4f} at 3",
        "more iterations",
    )
    leak, smallest = (at(Diagnostic.QUOTIENT_JACOBIAN, name, 1) for name in ("leak", "smallest"))
    yield _judge_leak(leak, smallest, None, " at logit std 1")
    yield _judge_sensitivity([s for s in slopes if s.diagnostic is Diagnostic.SENSITIVITY])
    yield _judge_updates([s for s in slopes if s.diagnostic is Diagnostic.LOGIT_UPDATE])
    yield min(
        (_judge_gates(found, None) for found in by_width.values()), key=lambda row: WORST_FIRST.index(row.verdict)
    )


def judge_found(found: Mapping[Quantity, Tensor], module: str, lr: float) -> Iterator[DiagnosticRow]:
    """Yield rows with verdicts on one hyper-connection of a user's model, for the diagnostics that were run on it.

    A hyper-connection keeps n residual streams instead of one; weights computed from them read, write and mix them.

    Args:
        found: measured numbers of every token, by quantity.
        module: path of the hyper-connection.
        lr: absolute learning rate that the step of Adam was measured with.
    """
    error = float(found[Quantity(Diagnostic.SINKHORN_ERROR, "worst")].mean())
    yield diagnostic_row(
        Diagnostic.SINKHORN_ERROR,
        _grade(error, SUMS),
        f"rows and columns sum to 1 within {error:.1e}",
        "more Sinkhorn iterations, or smaller logits (scale, weight decay on the generator)",
        module,
    )
    norm = float(found[Quantity(Diagnostic.SPECTRUM, "norm")].max())
    second = float(found[Quantity(Diagnostic.SPECTRUM, "second")].mean())
    yield diagnostic_row(
        Diagnostic.SPECTRUM,
        _grade(norm, NORM),
        f"the mix makes streams larger by at most {norm:.4f}, and keeps {second:.2f} of their differences",
        "normalise rows and columns in turn, more often",
        module,
    )
    if Quantity(Diagnostic.SENSITIVITY, "mix") not in found:
        return
    leak, smallest = (found[Quantity(Diagnostic.QUOTIENT_JACOBIAN, name)] for name in ("leak", "smallest"))
    yield _judge_leak(leak, smallest, module, "")
    typical, most = (float(found[Quantity(Diagnostic.SENSITIVITY, n)].mean()) for n in ("mix_typical", "mix"))
    yield diagnostic_row(
        Diagnostic.SENSITIVITY,
        Verdict.WEAK if typical > TYPICAL else Verdict.PASS,
        f"streams that change by 1 % change the mix by {typical:.3f} %, in the worst direction by {most:.2f} %",
        "a smaller scale or generator",
        module,
    )
    step = float(found[Quantity(Diagnostic.LOGIT_UPDATE, "total", "adam")].mean())
    yield diagnostic_row(
        Diagnostic.LOGIT_UPDATE,
        Verdict.WEAK if step > LOGIT_STEP else Verdict.PASS,
        f"one step of Adam at lr {lr:g} moves the mixing logits of a token by {step:.2g}",
        "a smaller rate for the generator, ~ 1/width",
        module,
    )
    yield _judge_gates(found, module)


def _judge_leak(leak: Tensor, smallest: Tensor, module: str | None, where: str) -> DiagnosticRow:
    """Judge how much a mixing matrix changes with those parts of its logits that it should not depend on.

    Those parts are constants added to rows or columns of the logits.

    A hyper-connection keeps n residual streams instead of one; weights computed from them read, write and mix them.

    Args:
        leak: magnitude of this response, for each token.
        smallest: smallest response to all other parts, for the message.
        module: path of the hyper-connection in a user's model; None for drawn ones.
        where: words for the message that say where it was measured.
    """
    value = float(leak.mean())
    return diagnostic_row(
        Diagnostic.QUOTIENT_JACOBIAN,
        _grade(value, LEAK),
        f"the mix answers by {value:.1e} to logits that it should not see{where}; smallest answer to the others "
        f"{float(smallest.mean()):.3f}",
        "more iterations",
        module,
    )


def _judge_sensitivity(slopes: Sequence[LawSlope]) -> DiagnosticRow:
    """Judge whether gates and mixing matrix depend on the streams more and more as the width grows.

    FAIL if a slope differs from the predicted one, or grows in typical directions; WEAK if only in the worst direction.

    A hyper-connection keeps n residual streams instead of one; weights computed from them read, write and mix them.

    Args:
        slopes: slopes of log2 of the sensitivity over log2 width, measured and predicted.
    """
    if off := _first_off(slopes):
        return diagnostic_row(Diagnostic.SENSITIVITY, Verdict.FAIL, off)
    by_name = {slope.of.name: slope for slope in slopes}
    worst, typical = by_name.get("mix"), by_name.get("mix_typical")
    if worst is None or typical is None:
        reason = "weights do not depend on the streams yet: the generator starts at zero"
        return diagnostic_row(Diagnostic.SENSITIVITY, Verdict.PASS, reason)
    grown, verdict = "", Verdict.PASS
    if worst.law > STABLE_SLOPE:
        grown, verdict = "; grows in the worst direction", Verdict.WEAK
    if typical.law > STABLE_SLOPE:
        grown, verdict = "; grows in typical directions too", Verdict.FAIL
    return diagnostic_row(
        Diagnostic.SENSITIVITY,
        verdict,
        f"slope over width {_text(worst)} in the worst direction, {_text(typical)} in a typical one, as the init says"
        + grown,
        "init std of the generator ~ 1/width, or zero",
    )


def _judge_updates(slopes: Sequence[LawSlope]) -> DiagnosticRow:
    """Judge whether one optimizer step moves the mixing logits by as much at every width.

    FAIL if a slope over width differs from the predicted one, or the step grows with width; WEAK if it shrinks.

    A hyper-connection keeps n residual streams instead of one; weights computed from them read, write and mix them.

    Args:
        slopes: slopes of log2 of the step over log2 width, by parameter and optimizer, measured and predicted.
    """
    if off := _first_off(slopes):
        return diagnostic_row(Diagnostic.LOGIT_UPDATE, Verdict.FAIL, off)
    of_generator = [slope for slope in slopes if slope.of.name == "weight"]
    law = max(slope.law for slope in of_generator)
    shown = ", ".join(f"{slope.of.optimizer} {_text(slope)}" for slope in of_generator)
    return diagnostic_row(
        Diagnostic.LOGIT_UPDATE,
        Verdict.FAIL if law > STABLE_SLOPE else Verdict.WEAK if law < -STABLE_SLOPE else Verdict.PASS,
        f"slope over width of one step of the generator: {shown}",
        "generator rate ~ 1/width; rates of scale and base without width",
    )


def _judge_gates(found: Mapping[Quantity, Tensor], module: str | None) -> DiagnosticRow:
    """Judge how many gates are saturated (within 5 % of an end of their range): WEAK above 10 %, FAIL above 50 %.

    A hyper-connection keeps n residual streams instead of one; weights computed from them read, write and mix them.

    Args:
        found: measured numbers of every token, by quantity.
        module: path of the hyper-connection in a user's model; None for drawn ones.
    """
    read, write = (float(found[Quantity(Diagnostic.GATES, f"{n}_saturated")].mean()) for n in ("read", "write"))
    return diagnostic_row(
        Diagnostic.GATES,
        _grade(max(read, write), SATURATION),
        f"{read:.0%} of read gates and {write:.0%} of write gates are within 5 % of an end",
        "smaller bases and scales, or a smaller rate for them",
        module,
    )


def _grade(value: float, limits: tuple[float, float]) -> Verdict:
    """Return PASS, WEAK or FAIL for a measured number, by two limits.

    Args:
        value: the number.
        limits: (above the first it is WEAK, above the second FAIL).
    """
    weak, fail = limits
    return Verdict.PASS if value <= weak else Verdict.WEAK if value <= fail else Verdict.FAIL


def _grade_two(fails: tuple[float, float], is_weak: tuple[float, float]) -> Verdict:
    """Return FAIL if the first number exceeds its limit, else WEAK if the second one does, else PASS.

    Args:
        fails: (number, limit) that decides about FAIL.
        is_weak: (number, limit) that decides about WEAK.
    """
    return Verdict.FAIL if fails[0] > fails[1] else Verdict.WEAK if is_weak[0] > is_weak[1] else Verdict.PASS


def _first_off(slopes: Sequence[LawSlope]) -> str:
    """Say in words which measured slope (a quantity grows like width^slope) is the first off its prediction, or ""."""
    off = next((slope for slope in slopes if not slope.agrees), None)
    if off is None:
        return ""
    return f"{off.quantity}: slope over width {_text(off)}, where the init predicts {off.law:+.2f}"


def _text(slope: LawSlope) -> str:
    """Format a measured slope (a quantity grows like width^slope) with its sign; "zero" if the quantity was zero."""
    return "zero" if slope.mean is None else f"{slope.mean:+.2f}"

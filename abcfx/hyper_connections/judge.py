"""What the numbers of the six diagnostics say: the law of an init, verdicts, and what to change."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from torch import Tensor

from abcfx.hyper_connections.diagnosis import FAIL, PASS, WARN, LawSlope, Verdict

INITS: Mapping[str, float | None] = {"mup": 1.0, "fan_in": 0.5, "constant": 0.0, "zero": None}
SUMS = (1e-3, 1e-2)  # of rows and columns: more than the first is a warning, more than the second a failure
NORM = (1.01, 1.05)
LEAK = (1e-3, 1e-2)
SATURATION = (0.1, 0.5)
STABLE = 0.1
TYPICAL = 1.0
LOGIT_STEP = 0.5


def laws(init: str, rate_exponent: float) -> dict[str, float]:
    """ "diagnostic/quantity" -> slope over width that an init std ~ d^-b and a generator rate ~ d^-c predict.

    ||dm/dx|| ||x|| ~ std (sqrt(D) + sqrt(k)) sqrt(D) for the worst direction and std sqrt(D) for a typical one; one
    step of SGD changes W x by lr |x|^2, one of Adam by lr |x|_1, both ~ D; scales learn from the mixing values, which
    are ~ std sqrt(D).
    """
    found = {f"logit_update/{optimizer} weight": 1 - rate_exponent for optimizer in ("sgd", "adam")}
    found |= {f"logit_update/{optimizer} base": 0.0 for optimizer in ("sgd", "adam")}
    b = INITS[init]
    if b is not None:
        for part in ("mix", "read", "write"):
            found[f"sensitivity/{part}"] = 1 - b
            found[f"sensitivity/{part}_typical"] = 0.5 - b
        found |= {"logit_update/sgd scale": 1 - 2 * b, "logit_update/adam scale": 0.5 - b}
        found["gate_statistics/mix logits std"] = 0.5 - b
    return found


def judge_drawn(
    by_width: Mapping[int, Mapping[str, Tensor]],
    by_spread: Mapping[str, Tensor],
    slopes: Sequence[LawSlope],
    iters: int,
) -> Iterator[Verdict]:
    """One verdict for each diagnostic of drawn hyper-connections."""

    def at(key: str, spread: int) -> Tensor:
        return by_spread[f"{key} at logit std {spread}"]

    widest = by_width[max(by_width)]
    error, large = float(at("sinkhorn_error/worst", 1).mean()), float(at("sinkhorn_error/worst", 3).mean())
    needed = [float(at("sinkhorn_error/iterations needed", s).quantile(0.9)) for s in (1, 3)]
    status = FAIL if error > SUMS[0] else WARN if large > SUMS[1] else PASS
    yield Verdict(
        "sinkhorn_error",
        status,
        f"rows and columns sum to 1 within {float(widest['sinkhorn_error/worst'].max()):.1e} at init, {error:.1e} at "
        f"logit std 1, {large:.1e} at 3; nine of ten matrices need {needed[0]:.0f} and {needed[1]:.0f} iterations for "
        f"{SUMS[0]:g}, there are {iters}" + _fix(status, "more iterations, or smaller logits"),
    )
    norm, large = float(at("spectrum/norm", 1).max()), float(at("spectrum/norm", 3).max())
    status = FAIL if norm > NORM[0] else WARN if large > NORM[1] else PASS
    yield Verdict(
        "spectrum",
        status,
        f"the mix makes streams larger by at most {norm:.4f} at logit std 1, {large:.4f} at 3"
        + _fix(status, "more iterations"),
    )
    yield _leak(at("quotient_jacobian/leak", 1), at("quotient_jacobian/smallest", 1), None, " at logit std 1")
    yield _sensitivity([s for s in slopes if s.diagnostic == "sensitivity"])
    yield _updates([s for s in slopes if s.diagnostic == "logit_update"])
    yield max(
        (_gates(found, None) for found in by_width.values()), key=lambda each: (PASS, WARN, FAIL).index(each.status)
    )


def judge_found(found: Mapping[str, Tensor], module: str, lr: float) -> Iterator[Verdict]:
    """Verdicts of one hyper-connection of a model, of the diagnostics that could be run on it."""
    error = float(found["sinkhorn_error/worst"].mean())
    status = _grade(error, SUMS)
    fix = _fix(status, "more Sinkhorn iterations, or smaller logits (scale, weight decay on the generator)")
    yield Verdict("sinkhorn_error", status, f"rows and columns sum to 1 within {error:.1e}{fix}", module)
    norm = float(found["spectrum/norm"].max())
    status = _grade(norm, NORM)
    yield Verdict(
        "spectrum",
        status,
        f"the mix makes streams larger by at most {norm:.4f}, and keeps {float(found['spectrum/second'].mean()):.2f} "
        f"of their differences" + _fix(status, "normalise rows and columns in turn, more often"),
        module,
    )
    if "sensitivity/mix" not in found:
        return
    yield _leak(found["quotient_jacobian/leak"], found["quotient_jacobian/smallest"], module, "")
    typical, most = float(found["sensitivity/mix_typical"].mean()), float(found["sensitivity/mix"].mean())
    status = WARN if typical > TYPICAL else PASS
    yield Verdict(
        "sensitivity",
        status,
        f"streams that change by 1 % change the mix by {typical:.3f} %, in the worst direction by {most:.2f} %"
        + _fix(status, "a smaller scale or generator"),
        module,
    )
    step = float(found["logit_update/adam total"].mean())
    status = WARN if step > LOGIT_STEP else PASS
    yield Verdict(
        "logit_update",
        status,
        f"one step of Adam at lr {lr:g} moves the mixing logits of a token by {step:.2g}"
        + _fix(status, "a smaller rate for the generator, ~ 1/width"),
        module,
    )
    yield _gates(found, module)


def _leak(leak: Tensor, smallest: Tensor, module: str | None, where: str) -> Verdict:
    value = float(leak.mean())
    status = _grade(value, LEAK)
    return Verdict(
        "quotient_jacobian",
        status,
        f"the mix answers by {value:.1e} to logits that it should not see{where}; smallest answer to the others "
        f"{float(smallest.mean()):.3f}" + _fix(status, "more iterations"),
        module,
    )


def _sensitivity(slopes: Sequence[LawSlope]) -> Verdict:
    off = [s for s in slopes if not s.agrees]
    if off:
        return Verdict("sensitivity", FAIL, _off_law(off[0]))
    mix = {s.quantity: s for s in slopes}
    worst, typical = mix.get("mix"), mix.get("mix_typical")
    if worst is None or typical is None:
        return Verdict("sensitivity", PASS, "weights do not depend on the streams yet: the generator starts at zero")
    grown, status = "", PASS
    if worst.law > STABLE:
        grown, status = "; grows in the worst direction", WARN
    if typical.law > STABLE:
        grown, status = "; grows in typical directions too", FAIL
    return Verdict(
        "sensitivity",
        status,
        f"slope over width {_slope(worst)} in the worst direction, {_slope(typical)} in a typical one, as the init says"
        + grown
        + _fix(status, "init std of the generator ~ 1/width, or zero"),
    )


def _updates(slopes: Sequence[LawSlope]) -> Verdict:
    off = [s for s in slopes if not s.agrees]
    if off:
        return Verdict("logit_update", FAIL, _off_law(off[0]))
    grows = {s.quantity.split()[0]: s for s in slopes if s.quantity.endswith("weight")}
    law = max(s.law for s in grows.values())
    status = FAIL if law > STABLE else WARN if law < -STABLE else PASS
    fix = _fix(status, "generator rate ~ 1/width; rates of scale and base without width")
    shown = ", ".join(f"{name} {_slope(s)}" for name, s in grows.items())
    return Verdict("logit_update", status, f"slope over width of one step of the generator: {shown}{fix}")


def _gates(found: Mapping[str, Tensor], module: str | None) -> Verdict:
    shares = {name: float(found[f"gate_statistics/{name}_saturated"].mean()) for name in ("read", "write")}
    status = _grade(max(shares.values()), SATURATION)
    return Verdict(
        "gate_statistics",
        status,
        f"{shares['read']:.0%} of read gates and {shares['write']:.0%} of write gates are within 5 % of an end"
        + _fix(status, "smaller bases and scales, or a smaller rate for them"),
        module,
    )


def _grade(value: float, limits: tuple[float, float]) -> str:
    warn, fail = limits
    return PASS if value <= warn else WARN if value <= fail else FAIL


def _off_law(slope: LawSlope) -> str:
    return f"{slope.quantity}: slope over width {_slope(slope)}, where the init predicts {slope.law:+.2f}"


def _slope(slope: LawSlope) -> str:
    return "zero" if slope.mean is None else f"{slope.mean:+.2f}"


def _fix(status: str, what: str) -> str:
    return "" if status == PASS else f". To fix: {what}"

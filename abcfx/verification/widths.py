"""Sections of `verify` on width: planned learning rates, coordinate and transfer check, and sizes of activations."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from abcfx.checks import TransferCheck
from abcfx.checks.transfer_study import MOST_SHIFT
from abcfx.checks.variants import STANDARD, TRANSFORMED
from abcfx.support.verdict import Verdict
from abcfx.verification.evidence import Evidence, number
from abcfx.verification.studies import BASE_LR, Studies, slope

C = {"embedding": 0.5, "hidden": 1.0, "readout": 0.5}
MOST_SLOPE = 0.15  # distance of a size's slope over width from the expected one
MOST_REGRET = 0.03  # nats
CONTROL_SHIFT = 0.4  # log2 lr per octave of width: the best rate of the model as written must move by this much
MOST_RATIO = 1.5  # of a layer's sizes over all widths
GROWS = 0.5  # slope over width by which some layer of the model as written must grow
READOUT = "head.weight"


def width_transfer(studies: Studies) -> Evidence:
    """Check that layers and the best learning rate do not depend on width: section "Width transfer" of `verify`.

    Planned rates must be powers of the width; `coord_check` and `transfer_check` must pass for the transformed model
    and fail for the unchanged one.

    Args:
        studies: training runs that sections share.

    Returns:
        Claims, each with whether it holds and the numbers that decided it, and tables of numbers.
    """
    evidence = Evidence()
    _check_rates(evidence, studies.rates)
    coordinates = studies.coordinates
    told = f"widths {_listed(coordinates.widths)}, {len(coordinates.seeds)} seeds"
    evidence.check("the coordinate check of a GPT passes", bool(coordinates), f"{coordinates.verdict}; {told}")
    control = coordinates.control
    evidence.check("the coordinate check of the GPT as written fails", control == Verdict.FAIL, str(control))
    _check_transfer(evidence, studies.transfer)
    return evidence


def _check_rates(evidence: Evidence, rates: Mapping[str, Mapping[int, float]]) -> None:
    """Add a table of planned learning rates, and claims that they are the powers of the width that muP says.

    Args:
        evidence: where they are added.
        rates: role (embedding, hidden, readout) -> width -> rate.
    """
    widths = list(rates["hidden"])
    table = evidence.table(f"Planned lr of an MLP, base width {widths[0]}, base lr {BASE_LR}, Adam", "width", *rates)
    for width in widths:
        table.add(width, *(by_width[width] for by_width in rates.values()))
    for role, by_width in rates.items():
        expected = [BASE_LR * (width / widths[0]) ** -C[role] for width in widths]
        evidence.close(f"{role}: lr (width / base)^-{number(C[role])}", list(by_width.values()), expected, 1e-9)


def _check_transfer(evidence: Evidence, transfer: TransferCheck) -> None:
    """Add a table of best learning rates by width, and claims on how far they move and what a small width's rate costs.

    The transformed model's best rate must stay, and the unchanged model's must move.

    Args:
        evidence: where they are added.
        transfer: the result of `transfer_check`.
    """
    curves = evidence.table(
        f"The best lr of an MLP on text, {transfer.steps} steps, {len(transfer.seeds)} seeds", "model", "width",
        "best lr", "loss there", "regret of the base's best lr",
    )  # fmt: skip
    for curve in transfer.curves:
        model = "transformed" if curve.model == TRANSFORMED else "as written"
        best = (transfer.centre or 1.0) * curve.best
        curves.add(model, curve.width, best, f"{curve.loss:.3f} +- {curve.error:.3f}", f"{curve.regret:.3f}")
    shift, control = transfer.shift, transfer.control
    told = f"log2 lr moves by {shift.mean:+.2f} +- {shift.error:.2f} per octave"
    claim = f"the best lr moves by at most {MOST_SHIFT} per octave, within two standard errors"
    evidence.check(claim, abs(shift.mean) - 2 * shift.error <= MOST_SHIFT, told)
    assert control is not None
    claim = f"the best lr of the model as written moves by at least {CONTROL_SHIFT} per octave"
    evidence.check(claim, control.mean <= -CONTROL_SHIFT, f"{control.mean:+.2f} +- {control.error:.2f} per octave")
    (cost, error), width = transfer.regret, transfer.widths[-1]
    borrowed = f"at width {width} the best lr of width {transfer.widths[0]} costs"
    claim = f"{borrowed} at most {MOST_REGRET} nats, within two standard errors"
    evidence.check(claim, cost - 2 * error <= MOST_REGRET, f"{cost:.3f} +- {error:.3f}")
    regret = transfer.curve(width, STANDARD).regret
    evidence.check(
        f"{borrowed} the model as written more than {2 * MOST_REGRET} nats", regret > 2 * MOST_REGRET, f"{regret:.3f}"
    )


def activation_magnitude(studies: Studies) -> Evidence:
    """Compare the RMS outputs of a GPT's layers at widths 64 to 1024: section "Activation magnitude" of `verify`.

    They must not depend on width, at init and after training, in the transformed model; in the unchanged one some must
    grow.

    Args:
        studies: training runs that sections share.

    Returns:
        Claims, each with whether it holds and the numbers that decided it, and tables of numbers.
    """
    evidence = Evidence()
    curves = studies.magnitudes
    steps = max(step for _, step in curves)
    end = curves[TRANSFORMED, steps]
    widths = list(next(iter(end.values())))
    slopes = {key: {node: slope(values) for node, values in each.items()} for key, each in curves.items()}
    table = evidence.table(f"RMS of layers of a GPT after {steps} steps of AdamW at one base lr", "layer",
                           *map(str, widths), "slope", "as written", "at init")  # fmt: skip
    for node, values in end.items():
        name = node.removesuffix(".weight").replace("(attention logits)", "logits")
        ways = ((TRANSFORMED, steps), (STANDARD, steps), (TRANSFORMED, 0))
        table.add(name, *(f"{value:.3f}" for value in values.values()), *(f"{slopes[way][node]:+.2f}" for way in ways))
    inside = {node: value for node, value in slopes[TRANSFORMED, 0].items() if node != READOUT}
    _within(evidence, "at init sizes do not depend on width", inside, 0.0)
    _within(
        evidence,
        "at init the logits shrink as width^-1/2, since a + b = 1",
        {READOUT: slopes[TRANSFORMED, 0][READOUT]},
        -0.5,
    )
    learned = {node: value for node, value in slopes[TRANSFORMED, steps].items() if node != READOUT}
    _within(evidence, f"after {steps} steps sizes do not depend on width", learned, 0.0)
    # Logits are a sum of an initial part, which falls as width^-1/2, and a learned one, which does not.
    logits = slopes[TRANSFORMED, steps][READOUT]
    told = f"slope {logits:+.2f}"
    evidence.check(
        "after training the logits neither blow up nor vanish", -0.5 - MOST_SLOPE < logits < MOST_SLOPE, told
    )
    ratio = max(max(values.values()) / min(values.values()) for node, values in end.items() if node != READOUT)
    claim = f"from width {widths[0]} to {widths[-1]} the sizes of a layer differ by less than {MOST_RATIO:g} x"
    evidence.check(claim, ratio < MOST_RATIO, f"{ratio:.2f} x")
    worst = max(slopes[STANDARD, steps], key=lambda node: slopes[STANDARD, steps][node])
    grown = slopes[STANDARD, steps][worst]
    evidence.check(
        f"some layer of the model as written grows faster than width^{GROWS}",
        grown > GROWS,
        f"{worst} ~ width^{grown:.2f}",
    )
    return evidence


def _within(evidence: Evidence, claim: str, slopes: Mapping[str, float], expected: float) -> None:
    """Add the claim that the slope of each layer is within 0.15 of the expected one; the furthest is named.

    Args:
        evidence: where the claim is added.
        claim: the claim as a sentence.
        slopes: for each layer, the slope of log2 of its output's RMS over log2 width.
        expected: what it should be.
    """
    worst = max(slopes, key=lambda node: abs(slopes[node] - expected))
    passed = abs(slopes[worst] - expected) <= MOST_SLOPE
    evidence.check(claim, passed, f"slopes within {MOST_SLOPE}; furthest {worst} {slopes[worst]:+.3f}")


def _listed(values: Iterable[object]) -> str:
    """Write values separated by commas."""
    return ", ".join(map(str, values))

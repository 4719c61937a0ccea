"""Sections of `verify` on alignment: how it is measured, learning rates that follow it, and a whole training run.

The alignment exponent of a product of matrices is 1/2 if its factors are independent, 1 if they line up fully.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, TypeAlias

import torch
import torch.nn.functional as F

from abcfx.dynamic import DynamicAlignment, Measured, measure
from abcfx.dynamic.history import HistoryRow
from abcfx.errors import InvalidInputError
from abcfx.lp.networks import find_c
from abcfx.pipeline import transform
from abcfx.verification.evidence import Evidence, number, numbers
from abcfx.verification.models import MLP, build, noise, unigram_entropy
from abcfx.verification.networks import FULL, MUP_A, MUP_B
from abcfx.verification.studies import Studies

FAN, WIDTH = 512, 64
LOSSES = 20  # last steps whose loss is averaged
MOST_ALIGNMENT, LEAST_ALIGNMENT = 1.2, -0.2  # products are no further from 1 and from 0 than by chance
AlignmentTerm: TypeAlias = Literal["alpha", "omega", "u"]
TERMS: tuple[AlignmentTerm, ...] = ("alpha", "omega", "u")


def alignment() -> Evidence:
    """Measure layers whose alignment exponents are known: section "Alignment" of `verify`.

    Alignment is 1/2 if updates and inputs (the factors of dW x) are independent, and 1 if they line up fully.

    Returns:
        Claims, each with whether it holds and the numbers that decided it, and tables of numbers.
    """
    evidence = Evidence()
    table = evidence.table(f"Measured: log_n of rms(product) over rms of both factors, n = {FAN}", "case", *TERMS)
    z0, w0 = noise(64, FAN, seed=1), noise(FAN, FAN, seed=2)
    dz, dw = noise(64, FAN, seed=3), noise(FAN, FAN, seed=4)
    direction = torch.ones(1, FAN)
    along = noise(FAN, 1, seed=5) @ direction
    cases = {
        "nothing has changed": measure(z0, w0, z0, w0, FAN),
        "weights only": measure(z0, w0, z0, w0 + dw, FAN),
        "independent changes": measure(z0, w0, z0 + dz, w0 + dw, FAN),
        "all along one direction": measure(direction, along, 2 * direction, 2 * along, FAN),
        "changes of 1e-20": measure(z0 * 1e-20, w0, (z0 + dz) * 1e-20, w0 + dw, FAN),
        "spectral norm": measure(z0, w0, z0 + dz, w0 + dw, FAN, norm="spectral"),
    }
    for name, found in cases.items():
        table.add(name, *map(_shown, found))
    evidence.check(
        "without a change every term is absent, not 0", cases["nothing has changed"] == Measured(None, None, None)
    )
    weights = cases["weights only"]
    evidence.check(
        "if only weights change, omega and u are absent", weights.alpha is not None and weights[1:] == (None, None)
    )
    independent = _present(cases["independent changes"])
    evidence.close("independent changes have the exponent 1/2", independent, [0.5] * 3, 0.02)
    evidence.close("aligned changes have the exponent 1", _present(cases["all along one direction"]), [1.0] * 3, 1e-5)
    evidence.close(
        "changes of 1e-20 have the exponents of independent changes",
        _present(cases["changes of 1e-20"]),
        _present(cases["independent changes"]),
        1e-4,
    )
    evidence.close(
        "the spectral norm gives the same exponents",
        _present(cases["spectral norm"]),
        _present(cases["independent changes"]),
        1e-4,
    )
    return evidence


def dynamic_flow() -> Evidence:
    """Follow the learning rates of a small training run step by step: section "Dynamic flow" of `verify`.

    `DynamicAlignment` must leave planned rates alone until its first measurement, then set those that `find_c` gives
    for the measured alignments, and show schedulers the planned rates between steps.

    Alignment is 1/2 if updates and inputs (the factors of dW x) are independent, and 1 if they line up fully.

    Returns:
        Claims, each with whether it holds and the numbers that decided it, and tables of numbers.
    """
    evidence = Evidence()
    x, labels = noise(128, 16), torch.randint(10, (128,), generator=torch.Generator().manual_seed(1))
    warmup, steps = 2, 4
    result = transform(build(lambda: MLP(WIDTH)), x, lr=0.02)
    optimizer = torch.optim.Adam(result.groups(per_parameter=True))
    dynamic = DynamicAlignment(
        result, optimizer, warmup=warmup, every=1, smoothing=0.0, cap=None, center=False, trust=1e9
    )
    refused = False
    try:
        dynamic.step()
    except InvalidInputError:
        refused = True
    evidence.check("step() before capture_initial() is refused", refused)
    dynamic.capture_initial(x)
    planned = [float(group["lr"]) for group in optimizer.param_groups]
    used: list[list[float]] = []
    optimizer.register_step_pre_hook(lambda *_: used.append([float(group["lr"]) for group in optimizer.param_groups]))
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(result.module(x), labels).backward()
        optimizer.step()
        dynamic.step()
    evidence.check(
        "steps up to the first measure use the planned rates", used[: warmup + 1] == [planned] * (warmup + 1)
    )
    evidence.check(
        "steps after the first measure use other rates",
        used[-1] != planned,
        f"{numbers(planned)} -> {numbers(used[-1])}",
    )
    now = [float(group["lr"]) for group in optimizer.param_groups]
    evidence.check("between steps the groups hold the planned rates, which schedulers see", now == planned)
    first = [row for row in dynamic.history if row["step"] == warmup + 1]
    table = evidence.table(f"Measured after step {warmup + 1}", "layer", *TERMS, "c", "planned lr", "lr")
    for row, lr in zip(first, planned, strict=True):
        table.add(row["node"], *(_shown(row[term]) for term in TERMS), row["c"], lr, row["lr"])
    static = find_c(MUP_A, MUP_B, *FULL).c
    c = _solved_apart(first)
    found = [math.nan if row["c"] is None else row["c"] for row in first]
    evidence.close("c is the one that find_c gives for the measured alignments", found, c, 1e-6)
    # The rate of the first layer does not depend on alignment, since the dim that it sums over does not grow.
    expected = [
        planned[0],
        *(lr * 64 ** (old - new) for lr, old, new in list(zip(planned, static, c, strict=True))[1:]),
    ]
    evidence.close("the optimizer steps with the planned lr times n^-(c - planned c)", used[warmup + 1], expected, 1e-8)
    dynamic.detach()
    optimizer.step()
    evidence.check("after detach() steps use the planned rates", used[-1] == planned)
    return evidence


def end_to_end(studies: Studies) -> Evidence:
    """Check that a character model learns with both kinds of rates: section "End-to-end training" of `verify`.

    These are planned rates, and rates that follow the measured alignment. Losses, alignments and changes of the rates
    are checked.

    Alignment is 1/2 if updates and inputs (the factors of dW x) are independent, and 1 if they line up fully.

    Args:
        studies: training runs that sections share.

    Returns:
        Claims, each with whether it holds and the numbers that decided it, and tables of numbers.
    """
    evidence = Evidence()
    run = studies.training
    table = evidence.table("Loss, nats per character", "step", "rates that follow alignment", "planned rates")
    for step in sorted({0, run.steps // 4, run.steps // 2, run.steps - 1}):
        table.add(step, run.dynamic[step], run.static[step])
    layers = evidence.table("Alignment of each layer at the last measure", "layer", *TERMS, "c", "lr")
    last = run.history[-1]["step"]
    for row in run.history:
        if row["step"] == last:
            layers.add(row["node"], *(_shown(row[term]) for term in TERMS), row["c"], row["lr"])
    unigram = unigram_entropy()
    for name, losses in (("with dynamic rates", run.dynamic), ("with planned rates", run.static)):
        end = sum(losses[-LOSSES:]) / LOSSES
        claim = f"{name} the model learns more than the frequencies of characters (entropy {unigram:.3f})"
        evidence.check(claim, end < unigram - 0.2, f"{losses[0]:.3f} -> {end:.3f}")
        evidence.check(f"{name} all losses are finite", all(map(math.isfinite, losses)), f"{len(losses)} losses")
    measured = [value for row in run.history for term in TERMS if (value := row[term]) is not None]
    possible = bool(measured) and all(LEAST_ALIGNMENT < value < MOST_ALIGNMENT for value in measured)  # no NaN
    told = f"{len(measured)} values, {number(min(measured))} to {number(max(measured))}" if measured else "none"
    evidence.check(f"measured alignments lie between {LEAST_ALIGNMENT} and {MOST_ALIGNMENT}", possible, told)
    rates: dict[str, list[float]] = {}
    for row in run.history:
        rates.setdefault(row["node"], []).append(row["lr"])
    moved = max((max(each) / min(each) for each in rates.values()), default=1.0)
    evidence.check("rates moved during the training", moved > 1.05, f"by up to {moved:.2f} x")
    return evidence


def _shown(value: float | None) -> float | str:
    """Return an alignment exponent for a table: "absent" for None, else the number.

    Alignment is 1/2 if updates and inputs (the factors of dW x) are independent, and 1 if they line up fully.
    """
    return "absent" if value is None else value


def _present(measured: Measured) -> list[float]:
    """Return measured alignment exponents as a list of numbers, NaN for None.

    Alignment is 1/2 if updates and inputs (the factors of dW x) are independent, and 1 if they line up fully.
    """
    return [math.nan if value is None else value for value in measured]


def _solved_apart(rows: Sequence[HistoryRow]) -> list[float]:
    """Solve a muP network of three layers with `find_c` for measured alignments; return its learning-rate exponents c.

    Alignment is 1/2 if updates and inputs (the factors of dW x) are independent, and 1 if they line up fully.

    Args:
        rows: what was measured of each layer. Exponents are clipped to [1/2, 1]; full alignment stands in for None.
    """

    def values(term: AlignmentTerm, preset: float) -> list[float]:
        """Return the alignment exponent `term` ("alpha", ...) of each layer, clipped to [1/2, 1]; `preset` for None."""
        return [preset if (value := row[term]) is None else min(max(value, 0.5), 1.0) for row in rows]

    alpha, omega, u = values("alpha", 1.0), values("omega", 0.5), values("u", 1.0)
    return find_c(MUP_A, MUP_B, alpha, omega, u).c

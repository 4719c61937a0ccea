"""Runs the six diagnostics on tokens, and on logits of a given spread, and turns what they return into rows."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from abcfx.hyper_connections.diagnosis import Row
from abcfx.hyper_connections.diagnostics import (
    gate_statistics,
    iterations_needed,
    logit_update,
    mixing_logits,
    quotient_jacobian,
    sensitivity,
    sinkhorn_error,
    spectrum,
)
from abcfx.hyper_connections.module import StreamWeights
from abcfx.hyper_connections.sinkhorn import sinkhorn

TOLERANCE = 1e-3
CONVERGED = 500  # iterations after which sigma_2 is taken for that of the limit
SPREADS = (1.0, 3.0)


@dataclass(frozen=True)
class Sample:
    """Streams x (S, n, d) with what a hyper-connection computes its weights from (see `diagnostics`).

    `found`: gates and mix that the user's own code returned for x, which are then judged instead of ours.
    """

    x: Tensor
    weight: Tensor
    scale: Tensor
    base: Tensor
    iters: int
    eps: float
    found: StreamWeights | None = None


def measured(sample: Sample, lr: float, lr_weight: float) -> dict[str, Tensor]:
    """ "diagnostic/quantity" -> one number for each token, of all diagnostics."""
    tensors = (sample.x, sample.weight, sample.scale, sample.base)
    logits = mixing_logits(*tensors, sample.eps)
    ours = StreamWeights(
        torch.sigmoid(logits.read) + sample.eps,
        2 * torch.sigmoid(logits.write),
        sinkhorn(logits.mix, sample.iters, sample.eps),
    )
    weights = ours if sample.found is None else sample.found
    found = of_mix(weights.mix)
    jacobian = quotient_jacobian(logits.mix, sample.iters, sample.eps)
    found |= {f"quotient_jacobian/{name}": value for name, value in jacobian._asdict().items()}
    for name, value in sensitivity(*tensors, sample.iters, sample.eps)._asdict().items():
        found[f"sensitivity/{name}"] = value
    for optimizer in ("sgd", "adam"):
        update = logit_update(*tensors, optimizer, lr, lr_weight, sample.iters, sample.eps)
        found |= {f"logit_update/{optimizer} {name}": value for name, value in update._asdict().items()}
    gates = gate_statistics(weights.read, weights.write)
    found |= {f"gate_statistics/{name}": value for name, value in gates._asdict().items()}
    found["gate_statistics/mix logits std"] = logits.mix.flatten(-2).std(-1)
    return found


def of_mix(mix: Tensor, suffix: str = "") -> dict[str, Tensor]:
    """The two diagnostics that need nothing but mixing matrices (S, n, n)."""
    error, values = sinkhorn_error(mix), spectrum(mix)
    return {
        f"sinkhorn_error/worst{suffix}": error.worst,
        f"sinkhorn_error/rows{suffix}": error.rows,
        f"spectrum/norm{suffix}": values.norm,
        f"spectrum/second{suffix}": values.second,
    }


def at_spread(
    streams: int, iters: int, eps: float, spread: float, samples: int, generator: torch.Generator
) -> dict[str, Tensor]:
    """What needs no width: logits N(0, spread^2)."""
    logits = spread * torch.randn(samples, streams, streams, generator=generator, dtype=torch.float64)
    suffix = f" at logit std {spread:g}"
    found = of_mix(sinkhorn(logits, iters, eps), suffix)
    limit = sinkhorn(logits, CONVERGED, eps)
    found[f"sinkhorn_error/rate{suffix}"] = sinkhorn_error(limit).rate
    found[f"sinkhorn_error/iterations needed{suffix}"] = iterations_needed(limit, TOLERANCE)
    jacobian = quotient_jacobian(logits, iters, eps)
    return found | {f"quotient_jacobian/{name}{suffix}": value for name, value in jacobian._asdict().items()}


def rows_of(found: dict[str, Tensor], width: int | None, module: str | None) -> list[Row]:
    rows = []
    for key, values in found.items():
        diagnostic, _, quantity = key.partition("/")
        numbers = values.double().flatten()
        sd = float(numbers.std()) if len(numbers) > 1 else 0.0
        ends = (float(numbers.min()), float(numbers.max()))
        rows.append(Row(diagnostic, quantity, width, module, float(numbers.mean()), sd, *ends, len(numbers)))
    return rows

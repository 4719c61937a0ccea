"""Runs six diagnostics of hyper-connections on tokens and on random logits, and summarises their numbers.

A hyper-connection keeps n residual streams instead of one; weights computed from them read, write and mix them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

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
from abcfx.hyper_connections.rows import OPTIMIZERS, Diagnostic, Measurement, Quantity
from abcfx.hyper_connections.sinkhorn_iterations import sinkhorn

TOLERANCE = 1e-3  # error of the sums up to which iterations are counted
CONVERGED = 500  # iterations after which sigma_2 is as good as that of the limit
LOGIT_SPREAD = Quantity(Diagnostic.GATES, "mix logits std")


@dataclass(frozen=True)
class Sample:
    """Tokens and the parameters of a hyper-connection, from which its gates and mixing matrices are computed.

    A hyper-connection keeps n residual streams instead of one; weights computed from them read, write and mix them.

    Attributes:
        x: the n residual streams of S tokens, (S, n, d).
        weight, scale, base: parameters: the generator ((2 + n) n, n d), a weight (or one for each token) that computes
            the gates and the mixing matrix from x; scales (3,); bases ((2 + n) n,).
        iters, eps: number of its Sinkhorn iterations (each scales rows, then columns, to the sum 1), and what is added
            in them.
        found: gates and mixing matrices that the user's own code returned for x; they are then judged instead of ours.
    """

    x: Tensor
    weight: Tensor
    scale: Tensor
    base: Tensor
    iters: int
    eps: float
    found: StreamWeights | None = None


def measure_sample(sample: Sample, lr: float, lr_weight: float) -> dict[Quantity, Tensor]:
    """Run all six diagnostics on the tokens of a hyper-connection.

    A hyper-connection keeps n residual streams instead of one; weights computed from them read, write and mix them.

    Args:
        sample: the tokens and the parameters.
        lr: absolute learning rate of scales and bases, for the diagnostic of an optimizer step.
        lr_weight: absolute learning rate of the generator, the weight that computes gates and mixing matrix.

    Returns:
        Quantity -> tensor with one number for each token.
    """
    tensors = (sample.x, sample.weight, sample.scale, sample.base)
    logits = mixing_logits(*tensors, sample.eps)
    ours = StreamWeights(
        torch.sigmoid(logits.read) + sample.eps,
        2 * torch.sigmoid(logits.write),
        sinkhorn(logits.mix, sample.iters, sample.eps),
    )
    weights = ours if sample.found is None else sample.found
    found = measure_mix(weights.mix)
    jacobian = quotient_jacobian(logits.mix, sample.iters, sample.eps)
    found |= _named(Diagnostic.QUOTIENT_JACOBIAN, jacobian._asdict())
    found |= _named(Diagnostic.SENSITIVITY, sensitivity(*tensors, sample.iters, sample.eps)._asdict())
    for optimizer in OPTIMIZERS:
        update = logit_update(*tensors, optimizer, lr, lr_weight, sample.iters, sample.eps)
        found |= _named(Diagnostic.LOGIT_UPDATE, update._asdict(), optimizer)
    found |= _named(Diagnostic.GATES, gate_statistics(weights.read, weights.write)._asdict())
    found[LOGIT_SPREAD] = logits.mix.flatten(-2).std(-1)
    return found


def measure_mix(mix: Tensor, spread: float | None = None) -> dict[Quantity, Tensor]:
    """Run the two diagnostics that need only mixing matrices (S, n, n): error of their sums, and singular values.

    Args:
        mix: the matrices.
        spread: standard deviation of the logits that they were computed from, if these were random.

    Returns:
        Quantity -> tensor with one number for each matrix.
    """
    error, values = sinkhorn_error(mix), spectrum(mix)
    numbers = {"worst": error.worst, "rows": error.rows}
    return _named(Diagnostic.SINKHORN_ERROR, numbers, spread=spread) | _named(
        Diagnostic.SPECTRUM, values._asdict(), spread=spread
    )


def measure_spread(
    streams: int, iters: int, eps: float, spread: float, samples: int, generator: torch.Generator
) -> dict[Quantity, Tensor]:
    """Draw random logits of mixing matrices and run on them the diagnostics that depend on no width.

    Args:
        streams: n, for n x n matrices.
        iters, eps: number of Sinkhorn iterations (each scales rows, then columns, to the sum 1), and what is added in
            them.
        spread: standard deviation of the logits.
        samples: number of matrices.
        generator: draws the logits.

    Returns:
        Quantity -> tensor with one number for each matrix.
    """
    logits = spread * torch.randn(samples, streams, streams, generator=generator, dtype=torch.float64)
    limit = sinkhorn(logits, CONVERGED, eps)
    numbers = {"rate": sinkhorn_error(limit).rate, "iterations needed": iterations_needed(limit, TOLERANCE)}
    jacobian = quotient_jacobian(logits, iters, eps)
    return (
        measure_mix(sinkhorn(logits, iters, eps), spread)
        | _named(Diagnostic.SINKHORN_ERROR, numbers, spread=spread)
        | _named(Diagnostic.QUOTIENT_JACOBIAN, jacobian._asdict(), spread=spread)
    )


def _named(
    diagnostic: Diagnostic, numbers: Mapping[str, Tensor], optimizer: str = "", spread: float | None = None
) -> dict[Quantity, Tensor]:
    """Return a diagnostic's numbers with full keys, so that those of all diagnostics can stand in one dict.

    Args:
        diagnostic: the diagnostic.
        numbers: short name, such as "norm" -> tensor with a number for each token or matrix.
        optimizer: "sgd" or "adam", if the numbers belong to an optimizer step.
        spread: standard deviation of the logits, if they were drawn at random.
    """
    return {Quantity(diagnostic, name, optimizer, spread): value for name, value in numbers.items()}


def summarise(found: Mapping[Quantity, Tensor], width: int | None, module: str | None) -> list[Measurement]:
    """Summarise every quantity over its tokens or matrices: mean, standard deviation, smallest, largest and number.

    A hyper-connection keeps n residual streams instead of one; weights computed from them read, write and mix them.

    Args:
        found: quantity -> tensor with one number for each token or matrix.
        width: width of a stream; None where it plays no part.
        module: path of the hyper-connection in a user's model; None for drawn ones.
    """
    measurements = []
    for quantity, values in found.items():
        numbers = values.double().flatten()
        sd = float(numbers.std()) if len(numbers) > 1 else 0.0
        ends = (float(numbers.min()), float(numbers.max()))
        measurements.append(Measurement(quantity, width, module, float(numbers.mean()), sd, *ends, len(numbers)))
    return measurements

"""`diagnose`: the six diagnostics on drawn hyper-connections over widths, or on those of a user's model."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from abcfx.errors import InvalidInputError
from abcfx.hyper_connections.diagnosis import Diagnosis, LawSlope, Row, Verdict
from abcfx.hyper_connections.found import find_hyper_connections
from abcfx.hyper_connections.judge import INITS, judge_drawn, judge_found, laws
from abcfx.hyper_connections.measure import SPREADS, Sample, at_spread, measured, of_mix, rows_of

STD = 0.02  # of the generator, at the smallest width
MATRICES = 10  # width-free diagnostics are cheap: so many matrices for each sample


def diagnose(
    widths: Sequence[int] = (64, 128, 256, 512, 1024),
    *,
    streams: int = 4,
    iters: int = 20,
    samples: int = 30,
    init: str = "mup",
    model: nn.Module | None = None,
    inputs: Any = None,
    eps: float = 1e-6,
    scale: float = 0.1,
    base: float = 0.0,
    lr: float = 1e-3,
    rate_exponent: float = 1.0,
    seed: int = 0,
) -> Diagnosis:
    """Six diagnostics of dynamic hyper-connections: does what they compute keep its size as the width grows?

    Without a model, hyper-connections are drawn at every width (streams N(0, 1)) and slopes over width are compared
    with the law of the init. With one, every hyper-connection in it is run on what really flows through it; `widths`
    and the options of drawing then play no part.

    Args:
        widths: d of a stream, at least two.
        streams: n, at least 2.
        iters: Sinkhorn iterations.
        samples: tokens at each width (each with a generator of its own), or of each hyper-connection of the model.
        init: std of the generator over width, 0.02 at the smallest: "mup" (~ 1/d), "fan_in" (~ d^-1/2), "constant", or
            "zero".
        model: a model with hyper-connections, ours or written by hand (see `find_hyper_connections`). It is run once,
            in eval mode and without gradients, and is left as it was.
        inputs: what the model is called with: a tensor, a tuple of arguments, or a dict of keyword arguments.
        eps: of the norm and of Sinkhorn.
        scale, base: values of hc_scale and hc_base.
        lr: absolute learning rate, of the generator at the smallest width, of scale and base at every width.
        rate_exponent: c, where the generator's rate is lr (d / smallest width)^-c. 1 is what `transform` gives it.
        seed: of everything that is drawn.

    Raises:
        InvalidInputError: arguments that do not fit; a model in which no hyper-connection was found.
    """
    if model is not None:
        return _of_model(model, inputs, samples, iters, lr, seed)
    widths = _checked(widths, streams, iters, samples, init)
    settings = {"widths": widths, "streams": streams, "iters": iters, "samples": samples, "init": init}
    settings |= {"eps": eps, "scale": scale, "base": base, "lr": lr, "rate_exponent": rate_exponent, "seed": seed}
    generator = torch.Generator().manual_seed(seed)
    b = INITS[init]
    by_width: dict[int, dict[str, Tensor]] = {}
    for d in widths:
        std = 0.0 if b is None else STD * (d / widths[0]) ** -b
        sample = _drawn(d, streams, samples, std, scale, base, iters, eps, generator)
        by_width[d] = measured(sample, lr, lr * (d / widths[0]) ** -rate_exponent)
    by_spread: dict[str, Tensor] = {}
    for spread in SPREADS:
        by_spread |= at_spread(streams, iters, eps, spread, MATRICES * samples, generator)
    rows = [row for d, found in by_width.items() for row in rows_of(found, d, None)] + rows_of(by_spread, None, None)
    slopes = [_slope(key, by_width, law) for key, law in laws(init, rate_exponent).items()]
    return Diagnosis(rows, slopes, list(judge_drawn(by_width, by_spread, slopes, iters)), settings)


def _checked(widths: Sequence[int], streams: int, iters: int, samples: int, init: str) -> tuple[int, ...]:
    if init not in INITS:
        raise InvalidInputError(f"diagnose: init={init!r}; expected one of {', '.join(INITS)}.")
    if streams < 2 or iters < 1 or samples < 2:
        raise InvalidInputError(
            f"diagnose: streams={streams}, iters={iters}, samples={samples}; expected at least 2, 1 and 2."
        )
    found = tuple(sorted(set(widths)))
    if len(found) < 2 or found[0] < 1:
        raise InvalidInputError(f"diagnose: widths={tuple(widths)}; expected at least two different ones.")
    return found


def _drawn(
    d: int,
    n: int,
    samples: int,
    std: float,
    scale: float,
    base: float,
    iters: int,
    eps: float,
    generator: torch.Generator,
) -> Sample:
    """Tokens with a generator each. Drawn in single precision, which is faster, computed in double."""
    k = (2 + n) * n
    x = torch.randn(samples, n, d, generator=generator).double()
    weight = torch.randn(samples, k, n * d, generator=generator).mul_(std).double()
    scales = torch.full((3,), scale, dtype=torch.float64)
    return Sample(x, weight, scales, torch.full((k,), base, dtype=torch.float64), iters, eps)


def _slope(key: str, by_width: Mapping[int, Mapping[str, Tensor]], law: float) -> LawSlope:
    """Least squares over all widths, sample by sample. A zero has no logarithm, and none stands in for it."""
    diagnostic, _, quantity = key.partition("/")
    x = torch.tensor([math.log2(d) for d in by_width], dtype=torch.float64)
    x -= x.mean()
    y = torch.stack([found[key].double() for found in by_width.values()])
    if not bool((y > 0).all()):
        return LawSlope(diagnostic, quantity, None, 0.0, law)
    each = x @ y.log2() / x.square().sum()
    return LawSlope(diagnostic, quantity, float(each.mean()), float(each.std() / len(each) ** 0.5), law)


def _of_model(model: nn.Module, inputs: Any, samples: int, iters: int, lr: float, seed: int) -> Diagnosis:
    rows, verdicts = list[Row](), list[Verdict]()
    for each in find_hyper_connections(model, inputs, samples=samples, iters=iters, seed=seed):
        width = each.streams.shape[-1]
        if each.sample is None:
            assert each.mix is not None
            found = of_mix(each.mix)
        else:
            found = measured(each.sample, lr, lr)
        rows += rows_of(found, width, each.path)
        verdicts += judge_found(found, each.path, lr)
        verdicts += each.notes
    settings = {"model": type(model).__name__, "samples": samples, "lr": lr, "seed": seed}
    return Diagnosis(rows, [], verdicts, settings)

"""`diagnose`: the six diagnostics on hyper-connections drawn at several widths, or on those of a user's model."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import get_args

import torch
from torch import Tensor, nn

from abcfx.errors import InvalidInputError
from abcfx.hyper_connections.diagnosis import Diagnosis
from abcfx.hyper_connections.found import find_hyper_connections
from abcfx.hyper_connections.judge import INIT_EXPONENTS, GeneratorInit, judge_drawn, judge_found, laws
from abcfx.hyper_connections.measure import Sample, measure_mix, measure_sample, measure_spread, summarise
from abcfx.hyper_connections.rows import SPREADS, DiagnosticRow, LawSlope, Measurement, Quantity
from abcfx.support import arguments
from abcfx.support.choices import choose
from abcfx.support.numbers import check_whole

STD = 0.02  # of the generator at the smallest width
MATRICES = 10  # drawn for each sample by the diagnostics that depend on no width, since these are cheap


@arguments.checked(
    model=arguments.optional(arguments.module),
    kwargs=arguments.keywords,
    streams=arguments.whole(at_least=2),
    iters=arguments.whole(),
    samples=arguments.whole(at_least=2),
    eps=arguments.number(at_least=0),
    scale=arguments.number(),
    base=arguments.number(),
    lr=arguments.number(above=0),
    rate_exponent=arguments.number(),
    seed=arguments.seed,
)
def diagnose(
    widths: Sequence[int] = (64, 128, 256, 512, 1024),
    *,
    model: nn.Module | None = None,
    args: object = None,
    kwargs: Mapping[str, object] | None = None,
    streams: int = 4,
    iters: int = 20,
    samples: int = 30,
    init: GeneratorInit = "mup",
    eps: float = 1e-6,
    scale: float = 0.1,
    base: float = 0.0,
    lr: float = 1e-3,
    rate_exponent: float = 1.0,
    seed: int = 0,
) -> Diagnosis:
    """Run six diagnostics of dynamic hyper-connections: does what they compute stay as large as the width grows?

    A hyper-connection is a residual connection over n streams, which weights computed from the streams read, write and
    mix. Without a model, hyper-connections are drawn at every width (streams from N(0, 1)), and slopes (log2 of each
    number over log2 width) are compared with those that the scaling of the initial weights predicts. With a model, each
    of its hyper-connections is run on the streams that really flow through it; `widths` and the options of drawing then
    play no part.

    Args:
        widths: widths d of a stream, at least two.
        model: a model with hyper-connections, ours or written by hand (see `find_hyper_connections`). It is run once,
            in eval mode and without gradients, and is left as it was.
        args: positional inputs of the model; a bare tensor counts as one argument.
        kwargs: keyword inputs of the model.

    Other arguments:
        streams: number n of streams, at least 2.
        iters: number of Sinkhorn iterations (each scales rows, then columns, to the sum 1).
        samples: number of tokens at each width (each with parameters of its own), or of each hyper-connection of the
            model.
        init: standard deviation of the generator (the weight that computes gates and mix) over width, 0.02 at the
            smallest: "mup" (~ 1/d), "fan_in" (~ d^-1/2), "constant", or "zero".
        eps: added in the norm and in Sinkhorn.
        scale: value of all scales.
        base: value of all bases.
        lr: absolute learning rate of scale and base at every width, and of the generator at the smallest width.
        rate_exponent: exponent c of the generator's rate, lr (d / smallest width)^-c. `transform` gives it 1.
        seed: seed of everything that is drawn.

    Returns:
        The verdicts, with all numbers and slopes.

    Raises:
        InvalidInputError: the arguments do not fit, or the model has no hyper-connection.

    Example:
        >>> found = diagnose((32, 64), init="constant", samples=4)
        >>> print(found.verdict, found.status("sensitivity"))
        FAIL FAIL
        >>> print(found.failed[0].fix)
        init std of the generator ~ 1/width, or zero
    """
    if model is not None:
        return _diagnose_model(model, args, kwargs, samples=samples, iters=iters, lr=lr, seed=seed)
    if args is not None or kwargs is not None:
        raise InvalidInputError(
            "diagnose: inputs were given without a model to run on them.\n  To fix: diagnose(model=model, args=...)"
        )
    init = choose("init", init, get_args(GeneratorInit))
    widths = _checked_widths(widths)
    drawing = _Drawing(streams, iters, samples, init, eps, scale, base)
    generator = torch.Generator().manual_seed(seed)
    by_width: dict[int, dict[Quantity, Tensor]] = {}
    for d in widths:
        sample = drawing.sample(d, widths[0], generator)
        by_width[d] = measure_sample(sample, lr, lr * (d / widths[0]) ** -rate_exponent)
    by_spread: dict[Quantity, Tensor] = {}
    for spread in SPREADS:
        by_spread |= measure_spread(streams, iters, eps, spread, MATRICES * samples, generator)
    measurements = [each for d, found in by_width.items() for each in summarise(found, d, None)]
    slopes = [_slope(quantity, by_width, law) for quantity, law in laws(init, rate_exponent).items()]
    return Diagnosis(
        rows=tuple(judge_drawn(by_width, by_spread, slopes, iters)),
        measurements=(*measurements, *summarise(by_spread, None, None)),
        slopes=tuple(slopes),
        settings={"widths": widths} | asdict(drawing) | {"lr": lr, "rate_exponent": rate_exponent, "seed": seed},
    )


@dataclass(frozen=True)
class _Drawing:
    """How hyper-connections are drawn at random, at any width; the attributes are the options of `diagnose`.

    Attributes:
        streams: number n of residual streams.
        iters: number of Sinkhorn iterations (each scales rows, then columns, to the sum 1).
        samples: number of tokens, each with a generator (weight that computes gates and mix) of its own.
        init: how the generator's standard deviation scales with width: "mup", "fan_in", "constant" or "zero".
        eps: added in the norm and in Sinkhorn.
        scale, base: value of all scales and of all bases.
    """

    streams: int
    iters: int
    samples: int
    init: GeneratorInit
    eps: float
    scale: float
    base: float

    def sample(self, d: int, smallest: int, generator: torch.Generator) -> Sample:
        """Draw tokens of a width, each with a weight of its own, and return them with scales and bases, in float64.

        Numbers are drawn in single precision, which is faster.

        Args:
            d: width of a stream.
            smallest: the smallest width, at which the weights have the standard deviation 0.02.
            generator: torch's random generator.
        """
        b, n = INIT_EXPONENTS[self.init], self.streams
        k = (2 + n) * n
        std = 0.0 if b is None else STD * (d / smallest) ** -b
        x = torch.randn(self.samples, n, d, generator=generator).double()
        weight = torch.randn(self.samples, k, n * d, generator=generator).mul_(std).double()
        scales = torch.full((3,), self.scale, dtype=torch.float64)
        return Sample(x, weight, scales, torch.full((k,), self.base, dtype=torch.float64), self.iters, self.eps)


def _checked_widths(widths: Sequence[int]) -> tuple[int, ...]:
    """Return the widths sorted and without repeats.

    Raises:
        InvalidInputError: there are fewer than two widths.
    """
    given = widths if isinstance(widths, Iterable) else (widths,)
    found = tuple(sorted({check_whole("diagnose: widths: each", width) for width in given}))
    if len(found) < 2 or found[0] < 1:
        raise InvalidInputError(f"diagnose: widths={tuple(given)}; expected at least two different ones.")
    return found


def _slope(quantity: Quantity, by_width: Mapping[int, Mapping[Quantity, Tensor]], law: float) -> LawSlope:
    """Fit log2 of a quantity over log2 width by least squares for each sample; return the mean slope and its error.

    Args:
        quantity: which number.
        by_width: width -> quantity -> tensor with a number for each sample.
        law: the slope that theory predicts, to be kept beside the measured one.

    Returns:
        The slope; its mean is None if some number is zero, which has no logarithm.
    """
    x = torch.tensor([math.log2(d) for d in by_width], dtype=torch.float64)
    x -= x.mean()
    y = torch.stack([found[quantity].double() for found in by_width.values()])
    if not bool((y > 0).all()):
        return LawSlope(quantity, None, 0.0, law)
    slopes = x @ y.log2() / x.square().sum()
    return LawSlope(quantity, float(slopes.mean()), float(slopes.std() / len(slopes) ** 0.5), law)


def _diagnose_model(
    model: nn.Module,
    args: object,
    kwargs: Mapping[str, object] | None,
    *,
    samples: int,
    iters: int,
    lr: float,
    seed: int,
) -> Diagnosis:
    """Run the six diagnostics on every hyper-connection of a user's model.

    A hyper-connection keeps n residual streams instead of one; weights computed from them read, write and mix them.

    Args:
        model: the model, run once in eval mode.
        args, kwargs: its inputs.
        samples: most tokens of each hyper-connection.
        iters: number of Sinkhorn iterations (each scales rows, then columns, to the sum 1) to assume for modules that
            do not return their mixing matrix.
        lr: absolute learning rate, for the diagnostic of an optimizer step.
        seed: seed of the choice of tokens.
    """
    rows, measurements = list[DiagnosticRow](), list[Measurement]()
    for each in find_hyper_connections(model, args, kwargs, samples=samples, iters=iters, seed=seed):
        if each.sample is None:
            assert each.mix is not None
            found = measure_mix(each.mix)
        else:
            found = measure_sample(each.sample, lr, lr)
        measurements += summarise(found, each.streams.shape[-1], each.path)
        rows += judge_found(found, each.path, lr)
        rows += each.notes
    settings = {"model": type(model).__name__, "samples": samples, "lr": lr, "seed": seed}
    return Diagnosis(rows=tuple(rows), measurements=tuple(measurements), slopes=(), settings=settings)

"""Finds hyper-connections (residual connections over n mixed streams) in a user's model, and what flows through them.

They are found by the shapes of their parameters: a module with one generator matrix ((2 + n) n, n d), or three with n,
n and n^2 rows, of either orientation, perhaps with a base, scales and a gain on its input. Shapes alone do not prove
that the rows mean read | write | mix, or how many iterations the module makes: the mixing matrix that we compute from
the parameters must be the one that the module returns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from abcfx.capture.examples import canonical
from abcfx.errors import InvalidInputError
from abcfx.hyper_connections.diagnostics import mixing_logits
from abcfx.hyper_connections.measure import Sample
from abcfx.hyper_connections.module import StreamWeights
from abcfx.hyper_connections.rows import Diagnostic, DiagnosticRow, diagnostic_row
from abcfx.hyper_connections.sinkhorn_iterations import normalised
from abcfx.support import arguments, trees
from abcfx.support.running import evaluating
from abcfx.support.verdict import Verdict

MOST_STREAMS = 32
MOST_PARAMETERS = 9  # three linear layers with bias, and up to three scales
MOST_ITERS = 200
USUAL_ITERS = (*range(1, 21), 30, 50, 100)  # tried beside the numbers that the module itself holds
CLOSE = 1e-4
_BY_GENERATOR = (
    Diagnostic.QUOTIENT_JACOBIAN,
    Diagnostic.SENSITIVITY,
    Diagnostic.LOGIT_UPDATE,
    Diagnostic.GATES,
)


@dataclass(frozen=True)
class FoundHyperConnection:
    """A hyper-connection found in a user's model, with the tokens that went through it in one run.

    Attributes:
        path: path of its module.
        streams: the n residual streams of S tokens, (S, n, d).
        mix: mixing matrices that the module returned for them, (S, n, n); None where it returns no such matrix.
        sample: streams and parameters, which the diagnostics take; None where the returned matrices are not those that
            we compute from the parameters.
        notes: rows that say which diagnostics were skipped, and what was taken for granted.
    """

    path: str
    streams: Tensor
    mix: Tensor | None
    sample: Sample | None
    notes: tuple[DiagnosticRow, ...] = ()


@dataclass(frozen=True)
class _Generator:
    """The parameters of a module found in a user's model, arranged as those of our `HyperConnection`.

    Attributes:
        weight: the generator, which maps the flattened streams to mixing values, ((2 + n) n, n d).
        scale: factors on the values of read gates, write gates and mix, (3,).
        base: what is added to the values, ((2 + n) n,).
        streams: number n of streams.
    """

    weight: Tensor
    scale: Tensor
    base: Tensor
    streams: int


@dataclass(frozen=True)
class _Candidate:
    """A module of a user's model that may be a hyper-connection, by the shapes of its parameters.

    A hyper-connection keeps n residual streams instead of one; weights computed from them read, write and mix them.

    Attributes:
        path: path of the module.
        module: the module.
        generator: its parameters, arranged as those of our `HyperConnection`.
    """

    path: str
    module: nn.Module
    generator: _Generator


@arguments.checked(
    model=arguments.module,
    kwargs=arguments.keywords,
    samples=arguments.whole(),
    iters=arguments.whole(),
    seed=arguments.seed,
)
def find_hyper_connections(
    model: nn.Module,
    args: object = None,
    kwargs: Mapping[str, object] | None = None,
    *,
    samples: int = 30,
    iters: int = 20,
    seed: int = 0,
) -> list[FoundHyperConnection]:
    """Find every hyper-connection (residual connection over n mixed streams) that a run of a model passes through.

    Args:
        model: it is run once in eval mode, without gradients, and left as it was.
        args: positional inputs of the model; a bare tensor counts as one argument.
        kwargs: keyword inputs of the model.
        samples: most tokens to keep of each hyper-connection.
        iters: number of Sinkhorn iterations (each scales rows, then columns, to the sum 1) to assume for modules that
            do not return their mixing matrix.
        seed: seed of the choice of tokens.

    Returns:
        The hyper-connections in the order of `model.named_modules()`.

    Raises:
        InvalidInputError: there are no inputs, or the model has no hyper-connection.
    """
    positional, keywords = canonical(args, kwargs)
    if positional is None or keywords is None:
        raise InvalidInputError(
            "diagnose: a model needs inputs, so that the streams which really flow through it are seen.\n"
            "  To fix: diagnose(model=model, args=...)"
        )
    candidates = {}
    for path, module in model.named_modules():
        if (generator := _generator(module)) is not None:
            # Of modules around the same parameters the innermost comes last, and stays.
            candidates[id(next(module.parameters()))] = _Candidate(path, module, generator)
    seen = _run(model, positional, keywords, list(candidates.values()))
    found = []
    choice = torch.Generator().manual_seed(seed)
    for each in candidates.values():
        if each.path in seen:
            x, mix = seen[each.path]
            tokens = torch.randperm(len(x), generator=choice)[:samples].to(x.device)
            mix = None if mix is None else mix[tokens].double()
            found.append(_compared(each, x[tokens].double(), mix, iters))
    if not found:
        raise InvalidInputError(
            f"diagnose: no hyper-connection was found in {type(model).__name__}.\n"
            f"  expected: a module whose parameters are one matrix ((2 + n) n, n d), a base and scales, and which is "
            f"called with streams (..., n, d).\n"
            f"  To fix: call the diagnostics alone on your tensors, as in sensitivity(x, weight, scale, base)."
        )
    return found


def _generator(module: nn.Module) -> _Generator | None:
    """Arrange a module's parameters as those of a hyper-connection; None where their shapes do not fit one.

    A hyper-connection keeps n residual streams instead of one; weights computed from them read, write and mix them.
    """
    parameters = [p.detach().double() for p in module.parameters()]
    if not 1 <= len(parameters) <= MOST_PARAMETERS:
        return None
    fan_in = max(size for p in parameters for size in (p.shape or (1,)))
    matrices = [p if p.shape[1] == fan_in else p.mT for p in parameters if p.ndim == 2 and fan_in in p.shape]
    rows = [len(matrix) for matrix in matrices]
    n = next((n for n in range(2, MOST_STREAMS + 1) if sum(rows) == (2 + n) * n), 0)
    if not n or fan_in % n or sorted(rows) not in ([(2 + n) * n], [n, n, n * n]):
        return None
    gains = [p for p in parameters if p.shape == (fan_in,)]
    rest = [p for p in parameters if fan_in not in p.shape]
    weight = torch.cat(_in_order(matrices, n))
    for scale in _possible_scales(rest):
        pieces = [p.flatten() for p in rest if not any(p is each for each in scale)]
        if sorted(p.numel() for p in pieces) in ([], [(2 + n) * n], [n, n, n * n]):
            return _Generator(
                weight * gains[0] if gains else weight,
                torch.cat([p.flatten() for p in scale]) if scale else weight.new_ones(3),
                torch.cat(_in_order(pieces, n)) if pieces else weight.new_zeros((2 + n) * n),
                n,
            )
    return None


def _in_order(pieces: list[Tensor], n: int) -> list[Tensor]:
    """Sort the parts of a hyper-connection's parameters: first those for the gates, last the one for the mixing matrix.

    Args:
        pieces: tensors with n rows (read and write gates, in this order) or n^2 rows (mixing matrix).
        n: number of residual streams.
    """
    return sorted(pieces, key=lambda piece: len(piece) == n * n)


def _possible_scales(parameters: list[Tensor]) -> Iterator[list[Tensor]]:
    """Yield the ways in which a hyper-connection may hold its three scales: one vector, three scalars, or not at all.

    A hyper-connection keeps n residual streams instead of one; weights computed from them read, write and mix them.

    Args:
        parameters: the module's parameters without matrices and gains.
    """
    yield from ([p] for p in parameters if p.numel() == 3)
    scalars = [p for p in parameters if p.numel() == 1]
    if len(scalars) == 3:
        yield scalars
    yield []


def _run(
    model: nn.Module, args: tuple[object, ...], kwargs: Mapping[str, object], candidates: list[_Candidate]
) -> dict[str, tuple[Tensor, Tensor | None]]:
    """Run the model once and record what goes into and out of each module that may be a hyper-connection.

    A hyper-connection keeps n residual streams instead of one; weights computed from them read, write and mix them.

    Args:
        model: the user's model, run in eval mode.
        args, kwargs: its inputs.
        candidates: the modules to watch.

    Returns:
        Path of each module that was called with streams -> (streams (S, n, d), mixing matrices (S, n, n) or None). Only
        the first call counts.
    """
    seen: dict[str, tuple[Tensor, Tensor | None]] = {}

    def watch(candidate: _Candidate) -> Callable[[nn.Module, object, object, object], None]:
        """Make the forward hook that records what goes into and out of one module."""
        n, size = candidate.generator.streams, candidate.generator.weight.shape[1]

        def hook(module: nn.Module, args: object, kwargs: object, output: object) -> None:
            """Record the streams and the mixing matrices of the module's first call."""
            if candidate.path in seen or (x := _streams(trees.tensors((args, kwargs)), n, size)) is None:
                return
            shape = (*x.shape[:-2], n, n)
            mix = next((t for t in trees.tensors(output) if t.shape == shape), None)
            seen[candidate.path] = (x.flatten(0, -3), None if mix is None else mix.flatten(0, -3))

        return hook

    hooks = [each.module.register_forward_hook(watch(each), with_kwargs=True) for each in candidates]
    try:
        with evaluating(model), arguments.run_on("args", model):
            model(*args, **kwargs)
    finally:
        for handle in hooks:
            handle.remove()
    return seen


def _streams(given: list[Tensor], n: int, size: int) -> Tensor | None:
    """Return the first tensor that may be n residual streams, brought to the shape (..., n, d); None if there is none.

    Args:
        given: inputs of a module.
        n: number of streams.
        size: n d, the size of all streams of a token.
    """
    for x in given:
        if x.ndim > 2 and x.shape[-2] == n and x.shape[-1] * n == size:
            return x
        if x.ndim > 1 and x.shape[-1] == size:
            return x.reshape(*x.shape[:-1], n, size // n)
    return None


def _compared(candidate: _Candidate, x: Tensor, mix: Tensor | None, iters: int) -> FoundHyperConnection:
    """Find out whether a module is a hyper-connection like ours, by its mixing matrices, and return it with its tokens.

    A hyper-connection keeps n residual streams instead of one; weights computed from them read, write and mix them.

    Args:
        candidate: the module, with parameters of fitting shapes.
        x: streams of the tokens, (S, n, d).
        mix: mixing matrices that the module returned for them; None if it returns none, and is believed by its shapes.
        iters: number of Sinkhorn iterations (each scales rows, then columns, to the sum 1) to assume in that case.

    Returns:
        The hyper-connection. If `mix` is not what we compute from the parameters, it has no `sample`, and a note for
        each diagnostic that cannot be run.
    """
    path, generator = candidate.path, candidate.generator
    sample = Sample(x, generator.weight, generator.scale, generator.base, iters, 1e-6)
    if mix is None:
        reason = f"it returns no mixing matrix: its rows are taken for read, write, mix, and {iters} iterations"
        note = diagnostic_row(Diagnostic.SINKHORN_ERROR, Verdict.SKIP, reason, module=path)
        return FoundHyperConnection(path, x, None, sample, (note,))
    best = _iterations(candidate.module, sample, mix)
    if best is None:
        reason = "not run: the mix that it returns is not sinkhorn of its generator's rows, read | write | mix"
        notes = tuple(diagnostic_row(each, Verdict.SKIP, reason, module=path) for each in _BY_GENERATOR)
        return FoundHyperConnection(path, x, mix, None, notes)
    sample = replace(sample, iters=best[0], eps=best[1])
    logits = mixing_logits(x, sample.weight, sample.scale, sample.base, sample.eps)
    weights = StreamWeights(torch.sigmoid(logits.read), 2 * torch.sigmoid(logits.write), mix)
    return FoundHyperConnection(path, x, mix, replace(sample, found=weights))


def _iterations(module: nn.Module, sample: Sample, mix: Tensor) -> tuple[int, float] | None:
    """Find with how many Sinkhorn iterations, and which eps, a user's hyper-connection computes its mixing matrices.

    Ours are computed from its parameters with many settings, and compared. Numbers that the module itself holds as
    attributes are tried too, and preferred.

    Args:
        module: the user's module.
        sample: residual streams of tokens, and the module's parameters.
        mix: the mixing matrices that the module returned for these tokens.

    Returns:
        (iterations, eps); None if no setting gives these matrices.
    """
    numbers = [value for part in module.modules() for value in vars(part).values() if isinstance(value, int | float)]
    own = {value for value in numbers if isinstance(value, int) and not isinstance(value, bool)}
    epsilons = [1e-6, *dict.fromkeys(v for v in numbers if isinstance(v, float) and 0 < v < 0.01)]
    close: dict[tuple[int, float], float] = {}
    for eps in epsilons:
        logits = mixing_logits(sample.x, sample.weight, sample.scale, sample.base, eps).mix
        for iters in sorted({i for i in own if 1 <= i <= MOST_ITERS} | {*USUAL_ITERS}):
            error = float((normalised(logits, iters, eps) - mix).abs().max())
            if error < CLOSE:
                close[iters, eps] = error
    if not close:
        return None
    best = min(close.values())
    alike = [key for key, error in close.items() if error <= 2 * best + 1e-6]
    return max(alike, key=lambda key: (key[0] in own, -close[key]))

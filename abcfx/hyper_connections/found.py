"""Hyper-connections in a user's model, found by the shapes of their parameters, with what flows through them.

One is a module whose parameters are one generator ((2 + n) n, n d), or three with n, n and n^2 rows, of either
orientation, perhaps with a base, scales and a gain on its input. That its rows mean read | write | mix, and how many
iterations it makes, is not believed but checked: our mixing matrix must be the one that it returns.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from abcfx.errors import InvalidInputError
from abcfx.hyper_connections.diagnosis import SKIP, Verdict
from abcfx.hyper_connections.diagnostics import mixing_logits
from abcfx.hyper_connections.measure import Sample
from abcfx.hyper_connections.module import StreamWeights
from abcfx.hyper_connections.sinkhorn import normalised
from abcfx.support import trees

MOST_STREAMS = 32
MOST_PARAMETERS = 9  # three linears with bias, three scales or fewer
MOST_ITERS = 200
CLOSE = 1e-4
BY_GENERATOR = ("quotient_jacobian", "sensitivity", "logit_update", "gate_statistics")


@dataclass(frozen=True)
class Found:
    """A hyper-connection of a model.

    Attributes:
        path: of its module.
        streams: tokens (S, n, d) that went in.
        mix: what it returned for them, (S, n, n); None where it returns no such matrix.
        sample: what the diagnostics take; None where its mix is not what its generator says.
        notes: diagnostics that were not run, and what was taken for granted.
    """

    path: str
    streams: Tensor
    mix: Tensor | None
    sample: Sample | None
    notes: tuple[Verdict, ...] = ()


@dataclass(frozen=True)
class _Generator:
    weight: Tensor
    scale: Tensor
    base: Tensor
    streams: int


def find_hyper_connections(
    model: nn.Module, inputs: Any, *, samples: int = 30, iters: int = 20, seed: int = 0
) -> list[Found]:
    """Every hyper-connection that a run of the model passes through, in order, with at most `samples` tokens of each.

    Args:
        model: run once on `inputs` in eval mode, without gradients; left as it was.
        inputs: a tensor, a tuple of arguments or a dict of keyword arguments.
        iters: taken for modules that do not return their mixing matrix.
        seed: of the choice of tokens.

    Raises:
        InvalidInputError: no inputs, or no hyper-connection.
    """
    if inputs is None:
        raise InvalidInputError(
            "diagnose: a model needs inputs, for what really flows through it.\n"
            "  To fix: diagnose(model=model, inputs=...)"
        )
    by_weight = {}
    for path, module in model.named_modules():
        if (generator := _generator(module)) is not None:
            by_weight[id(next(module.parameters()))] = (path, module, generator)  # the innermost module of those alike
    modules = {path: (module, each.streams, each.weight.shape[1]) for path, module, each in by_weight.values()}
    seen = _run(model, inputs, modules)
    found = []
    choice = torch.Generator().manual_seed(seed)
    for path, module, generator in by_weight.values():
        if path in seen:
            x, mix = seen[path]
            tokens = torch.randperm(len(x), generator=choice)[:samples].to(x.device)
            mix = None if mix is None else mix[tokens].double()
            found.append(_checked(path, module, generator, x[tokens].double(), mix, iters))
    if not found:
        raise InvalidInputError(
            f"diagnose: no hyper-connection was found in {type(model).__name__}.\n"
            f"  expected: a module whose parameters are one matrix ((2 + n) n, n d), a base and scales, and which is "
            f"called with streams (..., n, d).\n"
            f"  To fix: call the diagnostics alone on your tensors, as in sensitivity(x, weight, scale, base)."
        )
    return found


def _generator(module: nn.Module) -> _Generator | None:
    """The generator that the parameters of a module are; None where they are not one."""
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
    for scale in _scales(rest):
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
    """Read, write, mix: of three pieces the mix is the one with n^2 rows, wherever it stands."""
    return sorted(pieces, key=lambda piece: len(piece) == n * n)


def _scales(parameters: list[Tensor]) -> Iterator[list[Tensor]]:
    """What the three scales may be: one vector, three scalars, or nothing."""
    yield from ([p] for p in parameters if p.numel() == 3)
    scalars = [p for p in parameters if p.numel() == 1]
    if len(scalars) == 3:
        yield scalars
    yield []


def _run(
    model: nn.Module, inputs: Any, modules: Mapping[str, tuple[nn.Module, int, int]]
) -> dict[str, tuple[Tensor, Tensor | None]]:
    """Path -> (streams (S, n, d), mix (S, n, n) or None) of the modules that were called."""
    seen: dict[str, tuple[Tensor, Tensor | None]] = {}

    def watch(path: str, n: int, size: int) -> Any:
        def hook(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            given = trees.tensors((args, kwargs))
            if path in seen or (x := _streams(given, n, size)) is None:
                return
            leading = x.shape[:-2]
            returned = trees.tensors(output)
            mix = next((t for t in returned if t.shape == (*leading, n, n)), None)
            seen[path] = (x.flatten(0, -3), None if mix is None else mix.flatten(0, -3))

        return hook

    training = {module: module.training for module in model.modules()}
    hooks = [
        each.register_forward_hook(watch(path, *shape), with_kwargs=True) for path, (each, *shape) in modules.items()
    ]
    try:
        model.eval()
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            if isinstance(inputs, Mapping):
                model(**inputs)
            else:
                model(*inputs) if isinstance(inputs, tuple | list) else model(inputs)
    finally:
        for handle in hooks:
            handle.remove()
        for module, mode in training.items():
            module.training = mode
    return seen


def _streams(given: list[Tensor], n: int, size: int) -> Tensor | None:
    """The first tensor that may be streams, (..., n, d) or flattened, as (..., n, d)."""
    for x in given:
        if x.ndim > 2 and x.shape[-2] == n and x.shape[-1] * n == size:
            return x
        if x.ndim > 1 and x.shape[-1] == size:
            return x.reshape(*x.shape[:-1], n, size // n)
    return None


def _checked(path: str, module: nn.Module, generator: _Generator, x: Tensor, mix: Tensor | None, iters: int) -> Found:
    sample = Sample(x, generator.weight, generator.scale, generator.base, iters, 1e-6)
    if mix is None:
        reason = f"it returns no mixing matrix: its rows are taken for read, write, mix, and {iters} iterations"
        return Found(path, x, None, sample, (Verdict("sinkhorn_error", SKIP, reason, path),))
    best = _iterations(module, sample, mix)
    if best is None:
        reason = "not run: the mix that it returns is not sinkhorn of its generator's rows, read | write | mix"
        return Found(path, x, mix, None, tuple(Verdict(each, SKIP, reason, path) for each in BY_GENERATOR))
    sample = replace(sample, iters=best[0], eps=best[1])
    logits = mixing_logits(x, sample.weight, sample.scale, sample.base, sample.eps)
    weights = StreamWeights(torch.sigmoid(logits.read), 2 * torch.sigmoid(logits.write), mix)
    return Found(path, x, mix, replace(sample, found=weights))


def _iterations(module: nn.Module, sample: Sample, mix: Tensor) -> tuple[int, float] | None:
    """(iterations, eps) that give the matrix that the module returned; among its own numbers where several do."""
    numbers = [value for part in module.modules() for value in vars(part).values() if isinstance(value, int | float)]
    own = {value for value in numbers if isinstance(value, int) and not isinstance(value, bool)}
    epsilons = [1e-6, *dict.fromkeys(v for v in numbers if isinstance(v, float) and 0 < v < 0.01)]
    close: dict[tuple[int, float], float] = {}
    for eps in epsilons:
        logits = mixing_logits(sample.x, sample.weight, sample.scale, sample.base, eps).mix
        for iters in sorted({i for i in own if 1 <= i <= MOST_ITERS} | {*range(1, 21), 30, 50, 100}):
            error = float((normalised(logits, iters, eps) - mix).abs().max())
            if error < CLOSE:
                close[iters, eps] = error
    if not close:
        return None
    best = min(close.values())
    alike = [key for key, error in close.items() if error <= 2 * best + 1e-6]
    return max(alike, key=lambda key: (key[0] in own, -close[key]))

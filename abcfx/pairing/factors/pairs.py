"""Factors the dims of two models: runs both, with as many blocks as the small one has, and walks the two runs."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch._subclasses.fake_tensor import DataDependentOutputException

from abcfx.capture.aten import trace
from abcfx.errors import PairingError
from abcfx.pairing.factors.factoring import Factors, factor
from abcfx.pairing.graphs import NO_BLOCKS, Blocks

Pair = tuple[nn.Module, nn.Module]


def factor_models(
    *pairs: Pair, args: Sequence[Any] | None, kwargs: Mapping[str, Any] | None, blocks: Blocks = NO_BLOCKS
) -> Factors:
    """Factors of the first (small, large) pair whose runs can be compared: a model itself, or a graph captured of it.

    Runs are on fake tensors, or on real ones where the models ask for a value in them, such as that of a mask.

    Where the large model has more blocks, one of its blocks stands for each of the small one, under the small one's
    names (`Blocks.twin`).

    Raises:
        PairingError: none can be; says why, for the first of them.
    """
    failures: list[Exception] = []
    for fake, (small, large) in itertools.product((True, False), pairs):
        if not fake and not isinstance(failures[0], DataDependentOutputException):
            break
        try:
            with as_deep_as_base(large, blocks):
                runs = [trace(model, args or (), kwargs, fake=fake) for model in (small, large)]
            return factor(*runs)
        except Exception as error:  # a model may raise anything on fake tensors
            failures.append(error)
    first = failures[0]
    if isinstance(first, PairingError):
        raise first
    raise PairingError(
        f"The runs of the small and the large model cannot be compared: {type(first).__name__}: {first}"
    ) from first


@contextmanager
def as_deep_as_base(large: nn.Module, blocks: Blocks) -> Iterator[None]:
    """Within the block the large model has as many blocks as the small one, one for each, under the same numbers."""
    saved: list[tuple[nn.Module, dict[str, nn.Module | None]]] = []
    try:
        for container, twins in blocks.index.items():
            module = large.get_submodule(container)
            if not twins.keys() <= module._modules.keys():
                continue  # it is so already
            saved.append((module, dict(module._modules)))
            first: dict[str, nn.Module | None] = {}
            for block, twin in twins.items():
                first.setdefault(twin, module._modules[block])
            kept = {name: child for name, child in module._modules.items() if name not in twins}
            module._modules.clear()
            module._modules.update(kept | {twin: first[twin] for twin in sorted(first, key=int)})
        yield
    finally:
        for module, children in reversed(saved):
            module._modules.clear()
            module._modules.update(children)

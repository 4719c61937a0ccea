"""Factors the dims of two models: runs both, with the number of blocks of the small one, and walks the two runs."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from torch import nn

from abcfx.capture.aten import trace
from abcfx.capture.fake import VALUE_ERRORS
from abcfx.errors import PairingError
from abcfx.pairing.blocks import NO_BLOCKS, Blocks
from abcfx.pairing.factors.factoring import factor
from abcfx.pairing.factors.step import Factors

Inputs = tuple[Sequence[object] | None, Mapping[str, object] | None]
ModelPair = tuple[nn.Module, nn.Module]
"""The small and the large model, or a graph captured of each."""


def factor_models(*pairs: ModelPair, inputs: tuple[Inputs, Inputs], blocks: Blocks = NO_BLOCKS) -> Factors:
    """Run a small and a large model and write the dims of all tensors as products of factors that grow or stay.

    Several pairs may be given; they are tried in turn until two runs make the same calls. Runs are on fake tensors, or
    on real ones where a model asks for a value in them, such as that of a mask.

    Args:
        pairs: (small, large): the models themselves, then graphs captured of them.
        inputs: example inputs (positional, by keyword) of the small and of the large model.
        blocks: which block of the small model stands for each of the large one, where the large one has more of them.
            The factors are those of one large block for each small one, under the names of the small model.

    Raises:
        PairingError: no pair can be compared; says why, for the first pair.
    """
    failures: list[Exception] = []
    for fake, (small, large) in itertools.product((True, False), pairs):
        if not fake and not isinstance(failures[0], VALUE_ERRORS):
            break
        try:
            with as_deep_as_base(large, blocks):
                small_run, large_run = (
                    trace(model, args or (), kwargs, fake=fake)
                    for model, (args, kwargs) in zip((small, large), inputs, strict=True)
                )
            return factor(small_run, large_run)
        except Exception as error:  # any model's forward runs here, on fake tensors too: it may raise anything
            failures.append(error)
    first = failures[0]
    if isinstance(first, PairingError):
        raise first
    raise PairingError(
        f"The runs of the small and the large model cannot be compared: {type(first).__name__}: {first}\n"
        f"  To fix: call both models on these inputs first; build both by the same code."
    ) from first


@contextmanager
def as_deep_as_base(large: nn.Module, blocks: Blocks) -> Iterator[None]:
    """Give the large model, inside the `with` block, as many repeated blocks as the small model, equally numbered."""
    saved: list[tuple[nn.Module, dict[str, nn.Module | None]]] = []
    try:
        for container, twins in blocks.index.items():
            module = large.get_submodule(container)
            if not twins.keys() <= module._modules.keys():
                continue  # already done by an outer context
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

"""Chooses the small part of a batch on which a model is measured, as its captured fx graph takes inputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeAlias

import torch
from torch import fx

from abcfx.capture.codegen import call_signature
from abcfx.capture.examples import canonical
from abcfx.errors import InvalidInputError
from abcfx.support import trees

FlatInputs: TypeAlias = list[object]  # one value for each placeholder of the graph, most of them tensors

TOKENS = 128  # of a batch of sequences, all together
SEQUENCES, SAMPLES = 16, 32
# A sample that becomes many tokens (an image, say) costs as much as a sequence: fewer of them are taken.
MANY_TOKENS, SHARE_OF_BATCH, FEWEST_SAMPLES = 8, 1 / 4, 4


def flat_inputs(graph: fx.Graph, args: object, kwargs: Mapping[str, object] | None) -> FlatInputs:
    """Return the values of a captured fx graph's placeholders, in order, for a call of the model with the given inputs.

    Args:
        graph: the captured graph.
        args, kwargs: inputs of the model; a bare tensor counts as one positional argument.

    Raises:
        InvalidInputError: there are no inputs, or the model cannot be called with them.
    """
    positional, keywords = canonical(args, kwargs)
    if positional is None or keywords is None:
        raise InvalidInputError(
            "capture_initial: expected the inputs of the model, got none.\n  To fix: capture_initial(inputs)"
        )
    signature = call_signature(graph)
    try:
        return list(signature.flatten(signature.bind(*positional, **keywords)))
    except TypeError as error:
        shapes = trees.map_tensors(lambda tensor: tuple(tensor.shape), (positional, keywords))
        raise InvalidInputError(
            f"capture_initial: the model cannot be called with these inputs: {error}.\n"
            f"  got: tensors of the shapes {shapes[0]} and {shapes[1]}\n"
            f"  To fix: capture_initial(args, kwargs) with the inputs of the model alone, without targets"
        ) from error


def choose_inputs(
    flat: FlatInputs, max_tokens: int, graph: fx.Graph, largest_layer: Callable[[FlatInputs], int]
) -> FlatInputs:
    """Choose a part of a batch: short pieces of many sequences where the graph runs on them, else whole samples.

    Args:
        flat: all inputs, one for each placeholder of the graph.
        max_tokens: number of tokens to keep of a batch of sequences, spread over up to 16 of them.
        graph: the captured fx graph that will be run.
        largest_layer: runs the graph and returns the largest number of tokens that any of its layers gets.

    Returns:
        The chosen part, one value for each placeholder.
    """
    sequences = next((t for t in flat if isinstance(t, torch.Tensor) and _is_sequence(t)), None)
    if sequences is None:
        return _choose_samples(flat, largest_layer)
    whole = _first_samples(flat, SEQUENCES)
    length = max(1, max_tokens // min(SEQUENCES, sequences.shape[0]))
    short = [_cut(value, sequences.shape[1], length) for value in whole]
    try:
        guards = call_signature(graph).guards
        if guards is not None:
            guards(short)
        largest_layer(short)
    except Exception:  # the model's own code runs on shorter sequences than it was written for, and may raise anything
        return whole
    return short


def _choose_samples(flat: FlatInputs, largest_layer: Callable[[FlatInputs], int]) -> FlatInputs:
    """Choose up to 32 whole samples; where each becomes many tokens (an image, say), at most a quarter of the batch.

    Args:
        flat: all inputs, one for each placeholder of the graph.
        largest_layer: runs the graph and returns the largest number of tokens that any of its layers gets.
    """
    some = _first_samples(flat, SAMPLES)
    size = max((len(t) for t in flat if isinstance(t, torch.Tensor) and t.ndim), default=0)
    few = max(FEWEST_SAMPLES, int(size * SHARE_OF_BATCH))
    if few < min(size, SAMPLES) and largest_layer(some) >= MANY_TOKENS * min(size, SAMPLES):
        return _first_samples(flat, few)
    return some


def _first_samples(flat: FlatInputs, count: int) -> FlatInputs:
    """Return the model's inputs with only the first `count` samples of every tensor (copies); other values stay.

    Args:
        flat: inputs of the model, one for each placeholder of its graph.
        count: number of samples to keep.
    """
    return [value[:count].clone() if isinstance(value, torch.Tensor) and value.ndim else value for value in flat]


def _cut(value: object, length: int, shorter: int) -> object:
    """Shorten a tensor along its second dim, if that is as long as the sequences; return any other value as it is.

    Args:
        value: an input of the model.
        length: length of the sequences.
        shorter: length to cut them to.
    """
    if isinstance(value, torch.Tensor) and value.ndim >= 2 and value.shape[1] == length:
        return value[:, :shorter].contiguous()
    return value


def _is_sequence(tensor: torch.Tensor) -> bool:
    """Whether a tensor may hold token ids: integers with at least two dims."""
    return tensor.ndim >= 2 and not tensor.is_floating_point() and not tensor.is_complex()

"""Random generators of Python, NumPy and torch: tell them from other objects, read their state and set it."""

from __future__ import annotations

import random
import sys
from collections.abc import Mapping

import torch


def is_generator(value: object) -> bool:
    """Return True for a random generator of Python, NumPy or torch."""
    if isinstance(value, (random.Random, torch.Generator)):
        return True
    numpy_random = sys.modules.get("numpy.random")
    return numpy_random is not None and isinstance(value, (numpy_random.Generator, numpy_random.RandomState))


def state_of(generator: object) -> object:
    """Return the state of a random generator, which `set_state` takes and `same_state` compares."""
    if isinstance(generator, torch.Generator):
        return generator.get_state()
    if isinstance(generator, random.Random):
        return generator.getstate()
    bits = getattr(generator, "bit_generator", None)
    state: object = bits.state if bits is not None else generator.get_state()  # type: ignore[attr-defined]
    return state


def set_state(generator: object, state: object) -> None:
    """Bring a random generator back to a state that `state_of` returned for it."""
    if isinstance(generator, torch.Generator):
        assert isinstance(state, torch.Tensor)
        generator.set_state(state)
    elif isinstance(generator, random.Random):
        generator.setstate(state)  # type: ignore[arg-type]
    elif (bits := getattr(generator, "bit_generator", None)) is not None:
        bits.state = state
    else:
        generator.set_state(state)  # type: ignore[attr-defined]


def same_state(left: object, right: object) -> bool:
    """Whether two states of one random generator are equal, the arrays in them included."""
    if isinstance(left, torch.Tensor) and isinstance(right, torch.Tensor):
        return torch.equal(left, right)
    if isinstance(left, Mapping) and isinstance(right, Mapping):
        return all(same_state(value, right[key]) for key, value in left.items())
    if isinstance(left, (tuple, list)) and isinstance(right, (tuple, list)):
        return len(left) == len(right) and all(map(same_state, left, right))
    as_list = getattr(left, "tolist", None)
    return bool(left == right) if as_list is None else bool(as_list() == right.tolist())  # type: ignore[attr-defined]

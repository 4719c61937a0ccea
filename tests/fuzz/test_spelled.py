"""The same function in another spelling gets the same roles, exponents and rates, and trains alike."""

from __future__ import annotations

import pytest

from fuzz import spelled_attention, spelled_layers, spelled_tokens
from fuzz.spelled import Function, Transformed, differences, transformed

FUNCTIONS = spelled_layers.FUNCTIONS | spelled_attention.FUNCTIONS | spelled_tokens.FUNCTIONS
PAIRS = [  # each was another function to `transform` once
    ("sum of two", "stacked"),
    ("activations and edges", "one sum"),
    ("row gains", "einsum"),
    ("column gains", "einsum"),
    ("depthwise", "product and sum"),
    ("depthwise", "einsum"),
    ("attention", "logsumexp"),
    ("attention with a learned number", "scale first"),
    ("attention with a learned number", "tau times scale"),
    ("rms norm", "einsum"),
    ("rms norm", "vecdot"),
    ("l2 norm", "scale first"),
    ("l2 norm", "scale on weight"),
    ("gate", "vector"),
    ("memory", "sdpa"),
    ("numbers", "on input"),
    ("numbers", "both sides"),
]

ALIKE = ("linear", "two square", "low rank", "sum of two", "weighed sum of two", "row gains", "lstm", "highway")


def spelled(function: Function, name: str, optimizer: str = "adam") -> Transformed:
    return transformed(function, name, "residual", "head_dim", optimizer)


@pytest.mark.parametrize(("name", "spelling"), PAIRS)
def test_another_spelling_gets_the_same_exponents_and_trains_alike(name: str, spelling: str) -> None:
    function = FUNCTIONS[name]
    first = spelled(function, next(iter(function.spellings)))
    assert not differences(first, spelled(function, spelling), function.spelling(spelling).names)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "optimizer"),
    [*((name, "adam") for name in ALIKE), ("linear", "sgd")],
)
def test_all_spellings_of_a_function_are_alike(name: str, optimizer: str) -> None:
    function = FUNCTIONS[name]
    first = spelled(function, next(iter(function.spellings)), optimizer)
    told = {
        other: found
        for other in function.spellings
        if (found := differences(first, spelled(function, other, optimizer), function.spelling(other).names))
    }
    assert not told

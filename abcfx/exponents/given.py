"""Exponents that the user gave: read, checked, and put in the place of those that the roles give."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch

from abcfx.dag.layer_dag import LayerDag
from abcfx.errors import InvalidInputError
from abcfx.exponents.fixed import ParameterExponents
from abcfx.support.numbers import check_number
from abcfx.support.patterns import match_patterns
from abcfx.theory.parametrizations import MATRIX_ROLES

TOLERANCE = 1e-6
GivenExponents = Mapping[str, Sequence[float]] | Sequence[Sequence[float]]


def given_exponents(
    exponents: GivenExponents | None, dag: LayerDag, parameters: Mapping[str, torch.nn.Parameter]
) -> dict[str, tuple[float, ...]]:
    """Return the exponents (a, b) or (a, b, c) that the user gave, by parameter.

    Raises:
        InvalidInputError: a pattern matches nothing, or a list has another length than the model has layers.
    """
    if exponents is None:
        return {}
    if isinstance(exponents, Mapping):
        matched = match_patterns("exponents", exponents, parameters)
        return {name: _numbers(name, values) for name, values in matched.items()}
    names = list(dict.fromkeys(kind.parameter for _, kind in dag.layers()))
    if len(exponents) != len(names):
        raise InvalidInputError(
            f"exponents: {len(exponents)} tuples were given for {len(names)} layers.\n"
            f"  Layers, in the order in which they run: {', '.join(n.removesuffix('.weight') for n in names)}."
        )
    return {name: _numbers(name, values) for name, values in zip(names, exponents, strict=True)}


def _numbers(name: str, values: object) -> tuple[float, ...]:
    """Return the exponents that the user gave for the parameter `name`, as two or three finite floats.

    Raises:
        InvalidInputError: they are something else.
    """
    if not isinstance(values, Sequence) or isinstance(values, str) or len(values) not in (2, 3):
        raise InvalidInputError(f"exponents: {name!r} was given {values!r}; expected finite (a, b) or (a, b, c).")
    return tuple(check_number(f"exponents[{name!r}]", x) for x in values)


def overridden(found: ParameterExponents, name: str, values: tuple[float, ...]) -> ParameterExponents:
    """Return a parameter's exponents with those that the user gave put in.

    Args:
        found: the exponents without the user's.
        name: name of the parameter.
        values: (a, b) or (a, b, c).

    Raises:
        InvalidInputError: they make the layer's output unstable at init.
    """
    a, b, c = (*values, None)[:3]
    assert a is not None and b is not None
    total = a + b
    _check_size(found, name, total)
    return replace(found, a=dict.fromkeys(found.a, a), b=b, c=c, void=False, segments={}, rows={})


def _check_size(found: ParameterExponents, name: str, total: float) -> None:
    """Raise an error unless the exponents that a user gave keep a layer's output O(1) at init, or a norm follows.

    Multiplier and init are m^-a and m^-b (m, the width ratio); `total` is a + b, `found` has the layer's role and the
    growth of its dims.

    Raises:
        InvalidInputError: says what a + b has to be.
    """
    if found.void or found.role not in MATRIX_ROLES:
        return
    expected = (0.0 if found.role == "embedding" else found.e_in / 2) - found.own
    may_shrink = found.role == "readout" or bool(found.narrowing)
    wrong = total < expected - TOLERANCE if may_shrink else abs(total - expected) > TOLERANCE
    if wrong:
        at_least = "at least " if may_shrink else ""
        raise InvalidInputError(
            f"exponents: a + b of {name!r} ({found.role}) is {total:g}; its output is stable at init only if a + b is "
            f"{at_least}{expected:g}.\n  To fix: exponents={{{name!r}: (a, {expected:g} - a)}}"
        )

"""Misuse of options ends in one clear message, and nothing is changed."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from abcfx import DynamicAlignment, transform
from abcfx.errors import InvalidInputError
from abcfx.exponents.options import Parametrization
from abcfx.plan.options import ApplyMode, Overrides, Schedule
from abcfx.support.numbers import check_number, check_whole


def _mlp(width: int) -> nn.Module:
    return nn.Sequential(nn.Linear(8, width), nn.ReLU(), nn.Linear(width, 4))


@pytest.mark.parametrize("value", [True, "0.1", "x", None, float("nan"), float("inf"), 10**400, [1.0], 1j, 0, -1])
def test_what_is_no_positive_number_is_refused(value: object) -> None:
    with pytest.raises(InvalidInputError, match=r"^lr=.*: expected a positive, finite number"):
        check_number("lr", value, above=0)


def test_a_number_in_quotes_is_answered_with_the_line_to_write() -> None:
    with pytest.raises(InvalidInputError, match=r"To fix: lr=0\.1$"):
        check_number("lr", "0.1", above=0)


@pytest.mark.parametrize("value", [True, 1.5, 2.0, "3", 0, None])
def test_what_is_no_whole_number_is_refused(value: object) -> None:
    with pytest.raises(InvalidInputError, match=r"^every=.*: expected a whole number, at least 1"):
        check_whole("every", value)


@pytest.mark.parametrize("value", [1, 0.5, torch.tensor(0.5)])
def test_numbers_are_taken(value: object) -> None:
    assert check_number("lr", value, above=0) in (1.0, 0.5)


MISUSES: list[tuple[str, Callable[[nn.Module, torch.Tensor], object]]] = [
    ("eps=nan", lambda model, x: transform(model, x, eps=float("nan"))),
    ("lr=True", lambda model, x: transform(model, x, lr=True)),
    ("lr='0.1'", lambda model, x: transform(model, x, lr="0.1")),  # type: ignore[arg-type]
    (r"lr\['hidden'\]=None", lambda model, x: transform(model, x, lr={"hidden": None})),  # type: ignore[dict-item]
    ("weight_decay='0'", lambda model, x: transform(model, x, weight_decay="0")),  # type: ignore[arg-type]
    ("alignment alpha=-5", lambda model, x: Parametrization(alignment=(-5, 1, 1))),
    ("alignment=3", lambda model, x: Parametrization(alignment=3)),  # type: ignore[arg-type]
    ("batch_ratio=True", lambda model, x: Schedule(batch_ratio=True)),
    (
        "exponents: '0.weight' was given 3",
        lambda model, x: transform(
            model,
            x,
            apply="inplace",
            overrides=Overrides(exponents={"0": 3}),  # type: ignore[dict-item]
        ),
    ),
    ("no_decay='vector'", lambda model, x: Overrides(no_decay="vector")),
    ("one tuple: transform", lambda model, x: transform(model, x, x)),  # type: ignore[arg-type]
    ("base is wider than the model", lambda model, x: transform(model, x, base=_mlp(64), apply="inplace")),
]


@pytest.mark.parametrize(("message", "misuse"), MISUSES, ids=[message for message, _ in MISUSES])
def test_misuse_is_told_and_changes_nothing(message: str, misuse: Callable[[nn.Module, torch.Tensor], object]) -> None:
    model = _mlp(16)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(InvalidInputError, match=message):
        misuse(model, torch.rand(4, 8))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_wider_base_can_be_asked_for() -> None:
    asked = Parametrization(wider_base=True)
    assert transform(_mlp(16), torch.rand(4, 8), base=_mlp(64), parametrization=asked).header.width_ratio == 0.25


@pytest.mark.parametrize("apply", ["insert", "absorb", "inplace"])
def test_a_second_transform_of_one_object_is_refused(apply: ApplyMode) -> None:
    x, small = torch.rand(4, 8), _mlp(16)
    module = transform(_mlp(64), x, base=small, apply=apply).module
    with pytest.raises(InvalidInputError, match="model was transformed before"):
        transform(module, x, base=small, apply="inplace")


@pytest.mark.parametrize("options", [{"every": 1.5}, {"max_tokens": 0}, {"warmup": -1}, {"trust": "2"}])
def test_dynamic_alignment_refuses_what_is_no_number_of_steps(options: dict[str, object]) -> None:
    result = transform(_mlp(16), torch.rand(4, 8))
    optimizer = torch.optim.Adam(result.groups(per_parameter=True))
    with pytest.raises(InvalidInputError, match=f"DynamicAlignment: {next(iter(options))}="):
        DynamicAlignment(result, optimizer, **options)  # type: ignore[arg-type]


def test_text_that_is_no_number_gets_no_line_to_write() -> None:
    with pytest.raises(InvalidInputError) as told:
        check_number("eps", "nan")
    assert "To fix" not in str(told.value)
    with pytest.raises(InvalidInputError, match=r"To fix: lr=0\.1"):
        check_number("lr", "0.1")

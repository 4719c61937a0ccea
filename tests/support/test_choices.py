"""Options that are one of a few words are read in any case, and errors list the choices."""

from __future__ import annotations

from typing import Literal, get_args

import pytest

from abcfx.errors import InvalidInputError
from abcfx.support.choices import choose

Mode = Literal["insert", "weight_decay", "adam-atan2"]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("insert", "insert"),
        ("INSERT", "insert"),
        (" Insert ", "insert"),
        ("weight-decay", "weight_decay"),
        ("Adam_Atan2", "adam-atan2"),
    ],
)
def test_case_dashes_and_underscores_do_not_matter(value: str, expected: str) -> None:
    assert choose("apply", value, get_args(Mode)) == expected


def test_error_lists_the_choices_and_the_nearest_one() -> None:
    with pytest.raises(InvalidInputError) as error:
        choose("apply", "insret", get_args(Mode))
    assert str(error.value).split("\n  ") == [
        "apply='insret' is not known.",
        "Expected one of: 'insert', 'weight_decay', 'adam-atan2'.",
        "To fix: apply='insert'",
    ]


@pytest.mark.parametrize("value", ["", "nothing alike", None, 3, ["insert"]])
def test_error_suggests_nothing_where_nothing_is_near(value: object) -> None:
    with pytest.raises(InvalidInputError, match=r"Expected one of: 'insert', 'weight_decay', 'adam-atan2'\.$"):
        choose("apply", value, get_args(Mode))

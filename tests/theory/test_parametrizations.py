"""Tables of exponents and presets of alignments are found by name."""

from __future__ import annotations

import json
from importlib.resources import files

import pytest

from abcfx.errors import InvalidInputError
from abcfx.theory.parametrizations import ALIGNMENT_PRESETS, PARAMETRIZATIONS, alignment_preset, named_exponents


def test_names_are_those_of_the_data() -> None:
    data = json.loads((files("abcfx.data") / "named_parametrizations.json").read_text())
    assert set(PARAMETRIZATIONS) == set(data["parametrizations"])
    assert set(ALIGNMENT_PRESETS) == set(data["alignment_presets"])


def test_case_does_not_matter() -> None:
    assert named_exponents("muP") == named_exponents("mup")
    assert alignment_preset("FULL") == alignment_preset("full")


def test_unknown_names_are_refused_with_the_nearest_one() -> None:
    with pytest.raises(InvalidInputError, match=r"Expected one of: 'mup', 'sp', 'ntk', 'mfp'.\n  To fix: .*='mup'"):
        named_exponents("mupp")
    with pytest.raises(InvalidInputError, match=r"Expected one of: 'full', 'no', 'worst'.\n  To fix: .*='full'"):
        alignment_preset("ful")

"""The result of a check is true on PASS alone, raises on demand, and exports data and a figure."""

from __future__ import annotations

import json

import pytest

from abcfx.errors import AbcfxError, CheckFailedError
from abcfx.support.verdict import CheckResult, CheckRow, Verdict, worst

FAIL, INCONCLUSIVE, WEAK, PASS, SKIP = Verdict


def result_of(*verdicts: Verdict) -> CheckResult[CheckRow]:
    rows = (CheckRow(name=f"layer {i}", verdict=each, reason=f"reason {i}") for i, each in enumerate(verdicts))
    return CheckResult(rows=tuple(rows))


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ((PASS, SKIP), PASS),
        ((SKIP, SKIP), SKIP),
        ((), SKIP),
        ((PASS, WEAK), WEAK),
        ((WEAK, INCONCLUSIVE), INCONCLUSIVE),
        ((INCONCLUSIVE, FAIL, PASS), FAIL),
    ],
)
def test_the_verdict_is_the_worst_of_the_rows(rows: tuple[Verdict, ...], expected: Verdict) -> None:
    assert worst(rows) is expected
    assert result_of(*rows).verdict is expected
    assert bool(result_of(*rows)) is (expected is PASS)


def test_only_a_failed_check_raises_and_names_its_rows() -> None:
    for passing in (result_of(PASS), result_of(WEAK), result_of(INCONCLUSIVE), result_of(SKIP)):
        passing.raise_if_failed()
    result = result_of(PASS, FAIL)
    assert [row.name for row in result.failed] == ["layer 1"]
    with pytest.raises(CheckFailedError, match="layer 1: reason 1") as raised:
        result.raise_if_failed()
    assert "layer 0" not in str(raised.value)
    assert isinstance(raised.value, AbcfxError)


def test_a_result_is_handed_on_as_data() -> None:
    result = CheckResult(rows=(CheckRow(name="head", verdict=FAIL, reason="r", fix="line"),))
    read = json.loads(result.to_json())
    assert read == json.loads(json.dumps(result.to_dict()))
    assert (read["verdict"], read["failed"], read["rows"][0]["fix"]) == ("FAIL", ["head"], "line")
    assert str(result) == "check: FAIL\nFAIL head: r\n  To fix: line"
    assert f"{result.verdict}" == "FAIL"
    pytest.importorskip("pandas")
    assert list(result.to_pandas()["name"]) == ["head"]
    pytest.importorskip("matplotlib")
    assert len(result.plot().axes) == 1

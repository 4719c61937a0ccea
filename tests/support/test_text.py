"""Data becomes JSON, and tables of rich become plain lines."""

from __future__ import annotations

import json

import pytest
from rich.table import Table

from abcfx.report.console import progress_bar, text_of, verdict_text
from abcfx.support.text import finite
from abcfx.support.verdict import Verdict


def test_numbers_that_are_not_finite_become_null() -> None:
    data = {"a": [float("nan"), float("inf"), 1.5], 3: ("x", None, True)}
    assert json.loads(json.dumps(finite(data), allow_nan=False)) == {"a": [None, None, 1.5], "3": ["x", None, True]}


def test_tables_become_lines_and_strings_stay_as_they_are() -> None:
    table = Table("layer", box=None)
    table.add_row("x" * 200)
    lines = text_of("[bold]blocks[0][/bold]", table, width=50).splitlines()
    assert lines[0] == "[bold]blocks[0][/bold]"
    assert max(map(len, lines)) <= 50
    assert verdict_text(Verdict.FAIL).plain == "FAIL"
    assert verdict_text(None).plain == "-"


def test_a_progress_bar_is_silent_where_stderr_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar("runs", 2) as advance:
        advance()
        advance()
    assert capsys.readouterr() == ("", "")

"""The banner that HiGHS prints from C never reaches the output of a program that solves."""

from __future__ import annotations

import subprocess
import sys

import pytest

SOLVE = "abcfx.find_c([-0.5, 0.0, 0.5], [0.5] * 3, 1.0, 0.5, 1.0)"
CONFLICT = """
try:
    abcfx.find_c([-0.5, 0.0, 0.5], [0.5] * 3, 1.0, 1.2, 1.0, feature_learning=True)
except abcfx.errors.InfeasibleError:
    pass
else:
    raise SystemExit("there is a solution")
"""
CLOSED = "import os, sys; sys.stdout.close(); os.closerange(1, 2)"
THREADS = f"""
from concurrent.futures import ThreadPoolExecutor
with ThreadPoolExecutor(4) as pool:
    assert len({{tuple(each.c) for each in pool.map(lambda _: {SOLVE}, range(8))}}) == 1
"""


@pytest.mark.parametrize("lines", [(THREADS, CONFLICT), (CLOSED, SOLVE)], ids=["threads", "closed"])
def test_solving_prints_nothing(lines: tuple[str, ...]) -> None:
    done = subprocess.run([sys.executable, "-c", "\n".join(["import abcfx", *lines])], capture_output=True, timeout=300)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")

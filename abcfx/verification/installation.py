"""The section on the installation, and on the test suite that is run beside it."""

from __future__ import annotations

import ast
import doctest
import importlib
import re
from importlib import metadata
from pathlib import Path
from typing import Any

import abcfx
from abcfx.verification.evidence import Evidence

REQUIREMENT = re.compile(r"([\w.-]+)\s*>=\s*([\d.]+)$")
COMMANDS = (
    ("the suite, minutes", "pip install -e '.[dev]' && pytest"),
    ("what takes longer than a few seconds", "pytest -m slow"),
    ("types of Hugging Face models, captured and planned", "pytest -m zoo"),
    ("CUDA and bf16, where there is a GPU", "pytest -m gpu"),
)


def installation(_: Any) -> Evidence:
    evidence = Evidence()
    table = evidence.table("The test suite, from a checkout of the repository", "what", "command")
    for row in COMMANDS:
        table.add(*row)
    missing = [name for name in abcfx.__all__ if not hasattr(abcfx, name)]
    evidence.check("every public name resolves", not missing, ", ".join(missing) or f"{len(abcfx.__all__)} names")
    required = [found for line in metadata.requires("abcfx") or () if (found := REQUIREMENT.match(line))]
    installed = {found[1]: metadata.version(found[1]) for found in required}
    old = [f"{found[1]} {installed[found[1]]}" for found in required if _older(installed[found[1]], found[2])]
    told = ", ".join(f"{name} {version}" for name, version in installed.items())
    evidence.check("what it depends on is new enough", bool(required) and not old, ", ".join(old) or told)
    run = doctest.testmod(importlib.import_module("abcfx.lp.networks"))
    told = f"{run.attempted} run, {run.failed} failed"
    evidence.check("examples in docstrings give what they say", run.attempted > 0 and not run.failed, told)
    tests = Path(abcfx.__file__).parent.parent / "tests"
    if tests.is_dir():
        files, functions = _count(tests)
        evidence.check("the test suite is there", functions > 0, f"{functions} test functions in {files} files")
    return evidence


def _older(version: str, least: str) -> bool:
    def parts(text: str) -> list[int]:
        return [int(part) for part in re.findall(r"\d+", text.partition("+")[0])]

    return parts(version) < parts(least)


def _count(tests: Path) -> tuple[int, int]:
    """(files, test functions), read off their source."""
    files = sorted(tests.rglob("test_*.py"))
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in files]
    functions = [node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    return len(files), sum(function.name.startswith("test_") for function in functions)

"""Section "Test suite" of `verify`: public names, versions, examples in docstrings, and the tests if they are there."""

from __future__ import annotations

import ast
import doctest
import importlib
import re
from importlib import metadata
from pathlib import Path

from abcfx.verification.evidence import Evidence

PACKAGE = "abcfx"
DOCUMENTED = (
    "abcfx.lp.networks",
    "abcfx.dynamic.measured",
    "abcfx.hyper_connections.sinkhorn_iterations",
)  # and run in no time
REQUIREMENT = re.compile(r"([\w.-]+)\s*>=\s*([\d.]+)$")
COMMANDS = (
    ("the suite, minutes", "pip install -e '.[dev]' && pytest"),
    ("what takes longer than a few seconds", "pytest -m slow"),
    ("types of Hugging Face models, captured and planned", "pytest -m zoo"),
    ("CUDA and bf16, where there is a GPU", "pytest -m gpu"),
)


def installation() -> Evidence:
    """Look at the installed package from outside, as a user does: section "Test suite" of `verify`.

    Public names must resolve, required packages be new enough, and some docstring examples print what they say.

    Returns:
        Claims, each with whether it holds and the numbers that decided it, and tables of numbers.
    """
    evidence = Evidence()
    table = evidence.table("The test suite, from a checkout of the repository", "what", "command")
    for row in COMMANDS:
        table.add(*row)
    package = importlib.import_module(PACKAGE)
    missing = [name for name in package.__all__ if not hasattr(package, name)]
    evidence.check("every public name resolves", not missing, ", ".join(missing) or f"{len(package.__all__)} names")
    required = [found for line in metadata.requires(PACKAGE) or () if (found := REQUIREMENT.match(line))]
    installed = {found[1]: metadata.version(found[1]) for found in required}
    old = [f"{found[1]} {installed[found[1]]}" for found in required if _is_older(installed[found[1]], found[2])]
    told = ", ".join(f"{name} {version}" for name, version in installed.items())
    evidence.check(
        "the packages that abcfx depends on are new enough", bool(required) and not old, ", ".join(old) or told
    )
    runs = [doctest.testmod(importlib.import_module(name)) for name in DOCUMENTED]
    attempted, failed = (sum(getattr(run, key) for run in runs) for key in ("attempted", "failed"))
    told = f"{attempted} run, {failed} failed"
    evidence.check("examples in docstrings print what they say", attempted > 0 and not failed, told)
    tests = Path(str(package.__file__)).parent.parent / "tests"
    if tests.is_dir():
        files, functions = _count(tests)
        evidence.check("the test suite is there", functions > 0, f"{functions} test functions in {files} files")
    return evidence


def _is_older(version: str, least: str) -> bool:
    """Whether a version, such as "2.6.0+cpu", is older than another; what follows a plus is ignored."""

    def parts(text: str) -> list[int]:
        """Return the numbers in a version's text in order: [2, 6, 0] for "2.6.0"."""
        return [int(part) for part in re.findall(r"\d+", text.partition("+")[0])]

    return parts(version) < parts(least)


def _count(tests: Path) -> tuple[int, int]:
    """Return (number of test files, number of test functions) below a folder, read without importing them."""
    files = sorted(tests.rglob("test_*.py"))
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in files]
    functions = [node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    return len(files), sum(function.name.startswith("test_") for function in functions)

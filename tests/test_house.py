"""The rules that keep the package readable: sizes of files and functions, imports, and what is caught."""

from __future__ import annotations

import ast
import importlib
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import networkx as nx

import abcfx

ROOT = Path(abcfx.__file__).parent.parent
FOLDERS = {"abcfx": "abcfx", "passes": "abcfx.passes", "examples": "abcfx.examples"}
Function = ast.FunctionDef | ast.AsyncFunctionDef


def module_name(file: Path) -> str:
    folder, *rest = file.relative_to(ROOT).with_suffix("").parts
    return ".".join([FOLDERS[folder], *rest]).removesuffix(".__init__")


FILES = {module_name(file): file for folder in FOLDERS for file in sorted((ROOT / folder).rglob("*.py"))}
TREES = {name: ast.parse(file.read_text(encoding="utf-8")) for name, file in FILES.items()}


def room_of(module: str) -> str:
    """Return the part of a name after `abcfx.`, empty for the package itself."""
    return module.partition(".")[2].partition(".")[0]


def imports_of(module: str) -> Iterator[str]:
    """Yield the full names of a module's imports, also those inside functions and under TYPE_CHECKING."""
    for node in ast.walk(TREES[module]):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: relative import"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if inner in FILES or node.module == "torch" else str(node.module)


IMPORTS = {module: set(imports_of(module)) for module in FILES}


def importers_of(package: str) -> set[str]:
    return {
        module for module, names in IMPORTS.items() if any(n == package or n.startswith(f"{package}.") for n in names)
    }


def functions() -> Iterator[tuple[str, Function]]:
    for module, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, Function):
                yield f"{module}.{node.name}", node


def lines_of_code(module: str, function: Function) -> int:
    """Count the lines of a function without its docstring, comments and empty lines."""
    source = FILES[module].read_text(encoding="utf-8").splitlines()
    documented = ast.get_docstring(function) is not None
    docstring = range(function.body[0].lineno, (function.body[0].end_lineno or 0) + 1) if documented else range(0)
    numbers = range(function.lineno, (function.end_lineno or 0) + 1)
    return sum(n not in docstring and bool(text := source[n - 1].strip()) and not text.startswith("#") for n in numbers)


def test_no_file_has_more_than_400_lines() -> None:
    lengths = {name: len(file.read_text(encoding="utf-8").splitlines()) for name, file in FILES.items()}
    assert {name: length for name, length in lengths.items() if length > 400} == {}


def test_no_function_has_more_than_60_lines_of_code() -> None:
    lengths = {name: lines_of_code(name.rpartition(".")[0], function) for name, function in functions()}
    assert {name: length for name, length in lengths.items() if length > 60} == {}


def test_the_package_says_any_at_most_250_times() -> None:
    found = {name: len(re.findall(r"\bAny\b", file.read_text(encoding="utf-8"))) for name, file in FILES.items()}
    assert sum(found.values()) <= 250, sorted(found.items(), key=lambda pair: -pair[1])[:10]


def test_every_wide_except_says_why_on_its_line() -> None:
    wide = re.compile(r"except( .*\b(Base)?Exception\b.*)?:")
    found = {name: FILES[name].read_text(encoding="utf-8").splitlines() for name in FILES}
    caught = [(name, line.strip()) for name, lines in found.items() for line in lines if wide.match(line.strip())]
    assert [(name, line) for name, line in caught if "#" not in line] == []


def test_no_module_has_the_name_of_a_public_function() -> None:
    """The name would stand for the module or for the function, by the order of the imports."""
    public = {name for name in abcfx.__all__ if not isinstance(getattr(abcfx, name), type)}
    shadowed = {
        module
        for module in FILES
        if not isinstance(
            getattr(importlib.import_module(module.rpartition(".")[0] or module), module.rpartition(".")[2], None),
            ModuleType | None,
        )
    }
    assert shadowed | {module for module in FILES if module.rpartition(".")[2] in public} == set()


def test_at_most_8_modules_lie_flat_in_the_package() -> None:
    assert len(list((ROOT / "abcfx").glob("*.py"))) <= 8


def test_only_the_report_and_what_stands_above_it_import_rich() -> None:
    below = "errors support lp theory passes capture rules dag pairing exponents plan rewrite outcome data"
    assert {module for module in importers_of("rich") if room_of(module) in below.split()} == set()


def test_only_one_module_imports_the_pytree_of_torch_and_only_the_capture_other_private_parts() -> None:
    private = {
        (module, name)
        for module, names in IMPORTS.items()
        for name in names
        if name.startswith("torch.") and any(part.startswith("_") for part in name.split("."))
    }
    allowed = {pair for pair in private if pair[0] == "abcfx.support.trees" or room_of(pair[0]) == "capture"}
    assert private - allowed == set()
    assert {module for module, name in private if "pytree" in name} <= {"abcfx.support.trees"}


def test_the_programs_of_the_solver_know_no_torch_and_the_passes_nothing_of_abcfx() -> None:
    assert {module for module in importers_of("torch") if room_of(module) == "lp"} == set()
    ours = {name for module in FILES if room_of(module) == "passes" for name in IMPORTS[module] if "abcfx" in name}
    assert {name for name in ours if room_of(name) != "passes"} == set()


def test_only_examples_and_the_command_import_from_the_face_of_the_package() -> None:
    importers = {module for module, names in IMPORTS.items() if "abcfx" in names}
    assert {module for module in importers if room_of(module) not in ("examples", "cli", "")} == set()


def test_imports_form_no_circle() -> None:
    arrows = [(module, name) for module, names in IMPORTS.items() for name in names if name in FILES]
    parts = list(nx.strongly_connected_components(nx.DiGraph(arrows)))
    assert [sorted(part) for part in parts if len(part) > 1] == []


def test_no_file_of_the_tests_has_more_than_400_lines() -> None:
    files = {file.name: file.read_text(encoding="utf-8") for file in sorted((ROOT / "tests").rglob("*.py"))}
    assert {name: text.count("\n") for name, text in files.items() if text.count("\n") > 400} == {}

"""The face of the package: every public name is there, typed, and imported only when it is asked for."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import abcfx

FACE = Path(__file__).resolve().parents[2] / "abcfx" / "__init__.pyi"


def test_the_stub_declares_the_public_names_and_no_others() -> None:
    tree = ast.parse(FACE.read_text(encoding="utf-8"))
    modules = {alias.name for node in tree.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    rooms = {name for name in modules if node_is_room(name)}
    assert modules - rooms | {"__version__"} == set(dir(abcfx)) == set(abcfx.__all__)


def node_is_room(name: str) -> bool:
    return (FACE.parent / name).is_dir() or (FACE.parent / f"{name}.py").exists() or name == "passes"


def test_every_public_name_can_be_had() -> None:
    assert all(getattr(abcfx, name) is not None for name in dir(abcfx))
    with pytest.raises(AttributeError, match="no attribute 'transfrom'"):
        abcfx.transfrom  # type: ignore[attr-defined]  # noqa: B018


def test_importing_the_package_imports_no_torch() -> None:
    code = "import sys, abcfx; print('torch' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "False\n"

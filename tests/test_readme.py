"""The Python of the README and of the docs runs, and the report in the README is the one that is printed today.

`python tests/test_readme.py` writes report and graph anew.
"""

from __future__ import annotations

import ast
import contextlib
import io
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch

import abcfx
from abcfx import cli

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
CONTRIBUTING = ROOT / "CONTRIBUTING.md"
REPORT = re.compile(r"(<!-- report: [^\n]*-->\n```text\n)(.*?)(```\n)", re.S)
GRAPH = re.compile(r"(<!-- graph: [^\n]*-->\n```mermaid\n)(.*?)(```\n)", re.S)
ROOMS = re.compile(r"(<!-- rooms: [^\n]*-->\n)(.*?)(<!-- end of rooms -->\n)", re.S)


def snippets(path: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", path.read_text(encoding="utf-8"), re.S)


def printed_report() -> tuple[str, str]:
    """Run the README's first snippet; return its output and the graph of its result."""
    names: dict[str, Any] = {}
    output = io.StringIO()
    with contextlib.redirect_stdout(output), torch.random.fork_rng(devices=[]):
        exec(compile(snippets(README)[0], str(README), "exec"), names)
    return output.getvalue().rstrip("\n") + "\n", names["result"].to_mermaid()


def table_of_rooms() -> str:
    """Return the rooms from the ground floor up, each with the first sentence of its docstring."""
    config = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    floors: list[str] = ast.literal_eval(re.findall(r"^layers = (\[.*?^\])", config, re.S | re.M)[0])
    lines = ["| floor | room | what it owns |", "|---|---|---|"]
    for number, floor in enumerate(reversed(floors)):
        for room in re.findall(r"\w+", floor):
            folder = ROOT / room if (ROOT / room).is_dir() else ROOT / "abcfx" / room
            file = folder / "__init__.py" if folder.is_dir() else folder.with_suffix(".py")
            docstring = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
            path = f"{folder.relative_to(ROOT)}/" if folder.is_dir() else str(file.relative_to(ROOT))
            sentence = docstring.split("\n\n")[0].replace("\n", " ")
            lines.append(f"| {number} | [{path}]({path.removesuffix('/')}) | {sentence} |")
    return "\n" + "\n".join(lines) + "\n\n"


def without_times(report: str) -> str:
    """Remove the last line, whose times differ from run to run."""
    return re.sub(r"Time \(ms\):.*", "", report, flags=re.S)


def test_the_report_in_the_readme_is_the_one_that_is_printed() -> None:
    (shown,) = REPORT.findall(README.read_text(encoding="utf-8"))
    assert "blocks.{0,1}" in shown[1]
    (graph,) = GRAPH.findall(README.read_text(encoding="utf-8"))
    report, drawn = printed_report()
    assert without_times(shown[1]) == without_times(report), "to fix: python tests/test_readme.py"
    assert graph[1] == drawn, "to fix: python tests/test_readme.py"


def test_the_other_snippets_of_the_readme_run() -> None:
    _, *others = snippets(README)
    for snippet in others:
        exec(compile(snippet, str(README), "exec"), {"abcfx": abcfx})


def test_the_rules_of_the_docs_work(monkeypatch: pytest.MonkeyPatch) -> None:
    from abcfx.rules import registry

    for name in ("_BY_OBJECT", "_BY_MODULE", "_BY_NAME"):
        monkeypatch.setattr(registry, name, dict(getattr(registry, name)))
    namespace: dict[str, Any] = {"__name__": "docs"}
    for snippet in snippets(ROOT / "docs" / "rules.md"):
        exec(compile(snippet, "rules.md", "exec"), namespace)

    class Net(torch.nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.first, self.gate = torch.nn.Linear(10, width), torch.nn.Linear(10, width)
            self.scaled, self.last = namespace["Scaled"](width), torch.nn.Linear(width, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.last(self.scaled(namespace["gated"](self.gate(x), self.first(x))))

    kinds = [data["kind"].name for _, data in abcfx.transform(Net(64)).dag.nodes.items()]
    assert kinds.count("product") == 2
    assert "pointwise" in kinds


def test_the_page_on_measured_alignment_runs(capsys: pytest.CaptureFixture[str]) -> None:
    namespace: dict[str, Any] = {"__name__": "docs"}
    for snippet in snippets(ROOT / "docs" / "dynamic.md"):
        exec(compile(snippet, "dynamic.md", "exec"), namespace)
    assert "'alpha'" in capsys.readouterr().out


def test_the_page_on_examples_runs() -> None:
    namespace: dict[str, Any] = {"__name__": "docs"}
    for snippet in snippets(ROOT / "docs" / "examples.md"):
        exec(compile(snippet, "examples.md", "exec"), namespace)
    held = [p for name in ("muon", "adamw") for group in namespace[name].param_groups for p in group["params"]]
    assert len(held) == len(list(namespace["module"].parameters()))


def test_the_page_on_reports_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, Any] = {"__name__": "docs"}
    page = ROOT / "docs" / "reports.md"
    for snippet in snippets(page):
        exec(compile(snippet, "reports.md", "exec"), namespace)
    assert "What keeps c = 1 from" in capsys.readouterr().out
    assert (tmp_path / "gpt.html").exists()
    (chain,) = re.findall(r"```json\n(.*?)```", page.read_text(encoding="utf-8"), re.S)
    (tmp_path / "chain.json").write_text(chain)
    for command in re.findall(r"^abcfx (?:report|solve) .*$", page.read_text(encoding="utf-8"), re.M):
        assert cli.main(shlex.split(command)[1:]) == 0, command


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch.compile itself
def test_the_page_on_using_it_runs(capsys: pytest.CaptureFixture[str]) -> None:
    namespace: dict[str, Any] = {"__name__": "docs"}
    for snippet in snippets(ROOT / "docs" / "using.md"):
        exec(compile(snippet, "using.md", "exec"), namespace)
    assert "Optimizer group" in capsys.readouterr().out


def test_the_page_of_recipes_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, Any] = {"__name__": "docs"}
    for snippet in snippets(ROOT / "docs" / "recipes.md"):
        exec(compile(snippet, "recipes.md", "exec"), namespace)
    namespace["test_every_layer_starts_and_learns_alike_at_every_width"]()


def test_the_page_on_audits_runs(capsys: pytest.CaptureFixture[str]) -> None:
    namespace: dict[str, Any] = {"__name__": "docs"}
    for snippet in snippets(ROOT / "docs" / "audit.md"):
        exec(compile(snippet, "audit.md", "exec"), namespace)
    printed = capsys.readouterr().out
    assert "audit: PASS" in printed
    assert "output (before the bias) x 1/4; or init x 1/4, lr x 1/4 and weight_decay x 4" in printed


def test_the_page_on_checks_runs(capsys: pytest.CaptureFixture[str]) -> None:
    namespace: dict[str, Any] = {"__name__": "docs"}
    for snippet in snippets(ROOT / "docs" / "checks.md"):
        exec(compile(snippet, "checks.md", "exec"), namespace)
    assert "coordinate check: PASS" in capsys.readouterr().out


def test_the_page_on_growing_runs(capsys: pytest.CaptureFixture[str]) -> None:
    namespace: dict[str, Any] = {"__name__": "docs"}
    for snippet in snippets(ROOT / "docs" / "growth.md"):
        exec(compile(snippet, "growth.md", "exec"), namespace)
    printed = capsys.readouterr().out
    assert printed.count("function kept") == 3
    assert "verdict: FAIL" in printed


def test_the_page_on_hyper_connections_runs(capsys: pytest.CaptureFixture[str]) -> None:
    namespace: dict[str, Any] = {"__name__": "docs"}
    for snippet in snippets(ROOT / "docs" / "hyper_connections.md"):
        exec(compile(snippet, "hyper_connections.md", "exec"), namespace)
    assert "hyper-connections: PASS" in capsys.readouterr().out


def test_the_table_of_rooms_is_that_of_today() -> None:
    ((_, shown, _),) = ROOMS.findall(CONTRIBUTING.read_text(encoding="utf-8"))
    assert shown == table_of_rooms(), "to fix: python tests/test_readme.py"


def test_whatever_contributing_names_is_where_it_says() -> None:
    """Every path exists, and every file of the table of questions has the name to look for."""
    text = CONTRIBUTING.read_text(encoding="utf-8")
    paths = set(re.findall(r"(?:abcfx|passes|tests|docs|examples|\.ci)/[\w./]*\w", text))
    assert len(paths) > 40
    assert {path for path in paths if not (ROOT / path).exists()} == set()
    questions = re.findall(r"^\| [^|]* \| ([^|]*) \| `([^`]*)` \|$", text, re.M)
    found = {
        (file, name): (ROOT / file).read_text()
        for where, name in questions
        for file in re.findall(r"\[([^]]*)\]", where)
    }
    assert len(found) > 20
    assert {(file, name) for (file, name), source in found.items() if name not in source} == set()


def test_the_reference_has_every_public_name() -> None:
    shown = re.findall(r"^::: [\w.]*\.(\w+)$", (ROOT / "docs" / "api.md").read_text(encoding="utf-8"), re.M)
    assert set(abcfx.__all__) - set(shown) <= {"AbcfxError", "__version__"}  # the errors are shown as a module


PAGES = [README, CONTRIBUTING, ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_links_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", path.read_text(encoding="utf-8")):
        assert target.startswith("https://") or (path.parent / target).exists(), target


if __name__ == "__main__":
    text = README.read_text(encoding="utf-8")
    report, drawn = printed_report()
    text = REPORT.sub(lambda found: found[1] + report + found[3], text)
    README.write_text(GRAPH.sub(lambda found: found[1] + drawn + found[3], text), encoding="utf-8")
    text = CONTRIBUTING.read_text(encoding="utf-8")
    CONTRIBUTING.write_text(ROOMS.sub(lambda found: found[1] + table_of_rooms() + found[3], text), encoding="utf-8")

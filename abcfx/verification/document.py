"""Writes a verification down in Markdown: every figure in it is one of the run."""

from __future__ import annotations

import platform
from importlib.metadata import version

from abcfx.verification.evidence import FAIL, PASS, Section, Table, Verification

COMMAND = "abcfx verify --write docs"


def document(verification: Verification, picture: str | None = None) -> str:
    """The page; `picture` is where the figure lies, seen from it."""
    seconds = sum(section.seconds for section in verification)
    versions = f"abcfx {version('abcfx')}, torch {version('torch')}, Python {platform.python_version()}"
    parts = [
        "# Verification",
        f"`{COMMAND}` wrote this page and its figure; every number on it is one of that run ({versions}, one "
        f"thread, {seconds:.0f} s of CPU time). `abcfx verify` alone prints verdicts and exits with 0 only if all "
        f"sections pass; `--only 3` runs one of them, `--details` shows its tables, `--json` is for scripts.",
        f"**{verification.verdict}**: {_count(verification)}",
        _summary(verification),
        *(_section(section, picture) for section in verification),
    ]
    return "\n\n".join(parts) + "\n"


def _count(verification: Verification) -> str:
    checks = [check for section in verification for check in section.evidence.checks]
    passed = sum(not section.failed for section in verification)
    held = sum(check.passed for check in checks)
    return f"{passed} of {len(verification.sections)} sections pass, {held} of {len(checks)} checks hold."


def _summary(verification: Verification) -> str:
    table = Table("", ("", "section", "verdict", "checks", "CPU s"))
    for section in verification:
        link = f"[{section.title}](#{section.number}-{section.title.lower().replace(' ', '-')})"
        table.add(section.number, link, section.verdict, len(section.evidence.checks), f"{section.seconds:.1f}")
    return _markdown(table)


def _section(section: Section, picture: str | None) -> str:
    parts = [f"## {section.number}. {section.title}", section.tested]
    for table in section.evidence.tables:
        parts.append(f"{table.caption}:\n\n{_markdown(table)}")
    checks = Table("", ("", "check", "found"))
    for check in section.evidence.checks:
        checks.add(PASS if check.passed else FAIL, check.claim, check.found)
    parts.append(_markdown(checks))
    if section.title == "Figure" and picture is not None:
        parts.append(f"![six panels]({picture})")
    return "\n\n".join(parts)


def _markdown(table: Table) -> str:
    rows = [table.columns, tuple("---" for _ in table.columns), *table.rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows)

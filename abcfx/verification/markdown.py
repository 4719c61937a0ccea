"""Writes the page in Markdown that shows the result of `verify`; every number on it comes from that run."""

from __future__ import annotations

import platform
from importlib.metadata import version

from abcfx.support import arguments
from abcfx.support.verdict import Verdict
from abcfx.verification.evidence import Table
from abcfx.verification.result import Section, Verification

COMMAND = "abcfx verify --write docs"


@arguments.checked(verification=arguments.instance_of(Verification, "what verify returns"))
def document(verification: Verification, picture: str | None = None) -> str:
    """Return the Markdown page that shows the result of a run of `verify`.

    Args:
        verification: the run.
        picture: path of the figure, relative to the page; None leaves it out.
    """
    versions = f"abcfx {version('abcfx')}, torch {version('torch')}, Python {platform.python_version()}"
    parts = [
        "# Verification",
        f"This page and its figure were written by `{COMMAND}`; every number is one of that run ({versions}, one "
        f"thread, {verification.seconds:.0f} s of CPU time). `abcfx verify` alone prints the verdicts and exits with 0 "
        f"only if all sections pass. `--only 3` runs one section, `--details` shows its tables, `--json` is for "
        f"scripts.",
        f"**{verification.verdict}**: {_count(verification)}",
        _summary(verification),
        *(_section(section, picture) for section in verification),
    ]
    return "\n\n".join(parts) + "\n"


def _count(verification: Verification) -> str:
    """Return the sentence that counts the sections that pass and the claims that hold."""
    claims = [claim for section in verification for claim in section.evidence.claims]
    passed = sum(section.verdict is Verdict.PASS for section in verification)
    held = sum(claim.verdict is Verdict.PASS for claim in claims)
    return f"{passed} of {len(verification.rows)} sections pass, {held} of {len(claims)} claims hold."


def _summary(verification: Verification) -> str:
    """Return a Markdown table with a line for each section: number, link, verdict, number of claims, CPU seconds."""
    table = Table("", ("", "section", "verdict", "claims", "CPU s"))
    for section in verification:
        link = f"[{section.name}](#{section.number}-{section.name.lower().replace(' ', '-')})"
        table.add(section.number, link, section.verdict, len(section.evidence.claims), f"{section.seconds:.1f}")
    return _markdown(table)


def _section(section: Section, picture: str | None) -> str:
    """Return one section of the Markdown page on `verify`: what it tests, tables, claims, perhaps the picture."""
    parts = [f"## {section.number}. {section.name}", section.tested]
    for table in section.evidence.tables:
        parts.append(f"{table.caption}:\n\n{_markdown(table)}")
    claims = Table("", ("", "claim", "found"))
    for claim in section.evidence.claims:
        claims.add(claim.verdict, claim.name, claim.reason)
    parts.append(_markdown(claims))
    if section.name == "Figure" and picture is not None:
        parts.append(f"![six panels]({picture})")
    return "\n\n".join(parts)


def _markdown(table: Table) -> str:
    """Return a table as Markdown, with vertical bars in its cells escaped."""
    rows = [table.columns, tuple("---" for _ in table.columns), *table.rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows)

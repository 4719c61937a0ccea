"""What a check of a growth found, and the report of all of them."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.rule import Rule
from rich.table import Table

STATUSES = ("PASS", "FAIL", "WARN", "SKIP")


@dataclass(frozen=True)
class Finding:
    """The outcome of one check.

    Attributes:
        check: its name, "C2 routers".
        status: "PASS", "FAIL", "WARN" (worth knowing, no fault) or "SKIP" (nothing to check, and why).
        value: the worst number measured.
        tolerance: what it is held against.
        node: op or tensor where it was measured.
        path: module path, or name of the parameter.
        cause: what is wrong, in words.
        fix: what to write.
        details: lines for the report.
    """

    check: str
    status: str
    value: float | None = None
    tolerance: float | None = None
    node: str = ""
    path: str = ""
    cause: str = ""
    fix: str = ""
    details: tuple[str, ...] = ()

    def __str__(self) -> str:
        where = f" at {self.path}" if self.path else ""
        node = f" ({self.node})" if self.node else ""
        fix = f"\n    To fix: {self.fix}" if self.fix else ""
        return f"{self.check}: {self.status}{where}{node}: {self.cause or 'nothing to say'}{fix}"


@dataclass(frozen=True)
class Verification:
    """The findings of `verify_growth`, in the order of the checks; true when none failed."""

    findings: tuple[Finding, ...]

    def __bool__(self) -> bool:
        return all(each.status != "FAIL" for each in self.findings)

    def __iter__(self) -> Iterator[Finding]:
        return iter(self.findings)

    def __getitem__(self, check: str) -> Finding:
        """The finding of a check by the start of its name: "C2"."""
        return next(each for each in self.findings if each.check.startswith(check))

    @property
    def verdict(self) -> str:
        return "PASS" if self else "FAIL"

    @property
    def first_failure(self) -> Finding | None:
        return next((each for each in self.findings if each.status == "FAIL"), None)

    @property
    def rows(self) -> list[Mapping[str, Any]]:
        """One dict for each check."""
        return [asdict(each) for each in self.findings]

    def to_json(self) -> dict[str, Any]:
        return {"verdict": self.verdict, "checks": self.rows}

    def __str__(self) -> str:
        console = Console(file=io.StringIO(), width=100, color_system=None, highlight=False, markup=False)
        for each in self.findings:
            console.print(Rule(f"{each.check}: {each.status}", align="left"))
            for line in (*each.details, each.cause, f"To fix: {each.fix}" if each.fix else ""):
                if line:
                    console.print(f"  {line}")
        console.print(Rule("summary", align="left"))
        table = Table("check", "status", "value", "tolerance", "where", box=SIMPLE_HEAD, pad_edge=False)
        for each in self.findings:
            numbers = ("" if number is None else f"{number:.2g}" for number in (each.value, each.tolerance))
            table.add_row(each.check, each.status, *numbers, each.path or each.node)
        console.print(table)
        console.print(f"verdict: {self.verdict}")
        file: Any = console.file
        return str(file.getvalue())

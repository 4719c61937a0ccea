"""`Audit`: the result of `audit`, with a row for each parameter and the optimizer groups that would be right."""

from __future__ import annotations

import os
from collections.abc import Hashable, Mapping
from dataclasses import asdict, dataclass, field
from html import escape
from typing import ClassVar, Literal

from abcfx.auditing.fixes import Fix
from abcfx.plan.groups import OptimizerGroup
from abcfx.report.names import listed
from abcfx.support.files import writable_file
from abcfx.support.verdict import CheckResult, CheckRow, Verdict

Topic = Literal["scaling", "eps", "weight decay"]


@dataclass(frozen=True)
class Exponents:
    """The exponents of one parameter, or of the logits of an attention; all are powers of the width ratio m.

    Attributes:
        a: the model's own multiplier is m^-a: numbers in its forward.
        b: its init is m^-b.
        c: its learning rate is m^-c; None if it does not train.
        b_error: sampling error of b.
        right_b: the b that would be right for this a.
        right_c: the c that would be right for this a.
        s: its output is ~ m^-s at init.
        r: its output changes by ~ m^-r in training.
        alpha: dW x, its update times the initial input, is ~ m^-alpha.
        u: dW dx, its update times the change of the input, is ~ m^-u.
        omega: W dx, its initial weight times the change of the input, is ~ m^-omega.
        g: its gradient is ~ m^-g.
        eps: its eps is ~ m^-eps.
        decay: its weight decay is ~ m^decay.
    """

    a: float = 0.0
    b: float | None = None
    c: float | None = None
    b_error: float = 0.0
    right_b: float | None = None
    right_c: float | None = None
    s: float | None = None
    r: float | None = None
    alpha: float | None = None
    u: float | None = None
    omega: float | None = None
    g: float | None = None
    eps: float | None = None
    decay: float | None = None


@dataclass(frozen=True, kw_only=True)
class AuditRow(CheckRow):
    """One parameter, or the logits of one attention: how it scales with width, and whether that is right.

    Attributes:
        topic: what is judged: "scaling" (init, multiplier and learning rate), "eps" or "weight decay".
        kind: what happens as the width grows: "right", "blows up", "learns ever less", "faster possible", ...
        role: "embedding", "hidden", "readout", "vector", "scalar" or "attention".
        exponents: what was read off, and what it leads to.
        change: the factors that put it right; None where nothing is to be changed.
    """

    topic: Topic = "scaling"
    kind: str = "right"
    role: str = ""
    exponents: Exponents = Exponents()
    change: Fix | None = None

    def to_dict(self) -> dict[str, object]:
        """Return the row, with its exponents and factors, as a dict of plain data."""
        own = {key: getattr(self, key) for key in ("name", "reason", "fix", "topic", "kind", "role")}
        change = None if self.change is None else self.change.to_dict()
        return {**own, "verdict": self.verdict.value, **asdict(self.exponents), "change": change}


@dataclass(frozen=True, kw_only=True)
class Audit(CheckResult[AuditRow]):
    """The result of `audit`: whether a model's own parametrization is right. It is true on PASS alone.

    Attributes:
        rows: one for each parameter and each attention whose head_dim grows or whose logits need a factor; further ones
            on eps and weight decay.
        widths: the two widths.
        width_ratio: m, the ratio of what grows between them.
        optimizer: names of the optimizers.
        guilty: the fewest parameters and attentions whose change makes everything right, by name.
        notes: sentences about the model as a whole.
        param_groups: groups for the optimizer of the larger model with the right learning rates, eps and weight decay;
            multipliers and inits that have to change as well are in the rows.
    """

    TITLE: ClassVar[str] = "audit"
    widths: tuple[int, int]
    width_ratio: float
    optimizer: str
    guilty: tuple[str, ...]
    notes: tuple[str, ...] = ()
    param_groups: list[OptimizerGroup] = field(default_factory=list, repr=False)

    def to_dict(self) -> dict[str, object]:
        """Return the verdict, the settings and all rows as plain data."""
        settings: Mapping[str, object] = {
            "widths": list(self.widths),
            "width_ratio": self.width_ratio,
            "optimizer": self.optimizer,
            "guilty": list(self.guilty),
            "notes": list(self.notes),
        }
        return {**super().to_dict(), **settings}

    def to_html(self, path: str | os.PathLike[str]) -> None:
        """Write the rows as one HTML file that needs no network.

        Raises:
            InvalidInputError: the folder is missing, or the path is a folder or a symlink.
        """
        writable_file("to_html", path).write_text(_page(self), encoding="utf-8")

    def collapsed(self) -> list[tuple[str, AuditRow]]:
        """Return (names, row) for the rows that say the same, in the order of the first of them."""
        found: dict[Hashable, list[AuditRow]] = {}
        for row in self.rows:
            found.setdefault((row.topic, row.verdict, row.kind, row.reason, row.fix), []).append(row)
        return [(listed((row.name for row in rows), most=99), rows[0]) for rows in found.values()]

    def __str__(self) -> str:
        """Return the verdict, what is wrong with its fix, and a line for everything that is right."""
        small, large = self.widths
        lines = [f"audit: {self.verdict}", f"widths {small} and {large} (m = {self.width_ratio:.4g}), {self.optimizer}"]
        collapsed = self.collapsed()
        wrong = [(name, row) for name, row in collapsed if row.verdict not in (Verdict.PASS, Verdict.SKIP)]
        for name, row in wrong:
            about = "" if row.topic == "scaling" else f" ({row.topic})"
            lines.append(f"{row.verdict} {name}{about}: {row.kind}; {row.reason}")
            lines += [f"  To fix: {row.fix}"] * bool(row.fix)
        lines += [f"PASS {name}: {row.reason}" for name, row in collapsed if row.verdict is Verdict.PASS]
        lines += [f"SKIP {name}: {row.reason}" for name, row in collapsed if row.verdict is Verdict.SKIP]
        return "\n".join([*lines, *self.notes])


def _page(audit: Audit) -> str:
    """Return the HTML page of an audit: a headline and a table of its rows."""
    cells = []
    for name, row in sorted(audit.collapsed(), key=lambda pair: list(Verdict).index(pair[1].verdict)):
        each = (row.verdict.value, name, row.topic, row.kind, _exponents(row.exponents), row.reason, row.fix)
        style = {Verdict.FAIL: "fail", Verdict.WEAK: "weak"}.get(row.verdict, "")
        cells.append(f'<tr class="{style}">' + "".join(f"<td>{escape(cell)}</td>" for cell in each) + "</tr>")
    title = f"audit: {audit.verdict}"
    heads = "".join(f"<th>{head}</th>" for head in ("verdict", "parameter", "of", "what", "exponents", "why", "to fix"))
    notes = "".join(f"<p>{escape(note)}</p>" for note in audit.notes)
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title><style>{_CSS}</style>'
        f"<h1>{title}</h1><p>widths {audit.widths[0]} and {audit.widths[1]}, m = {audit.width_ratio:.4g}, "
        f"{escape(audit.optimizer)}</p><table><tr>{heads}</tr>{''.join(cells)}</table>{notes}</html>"
    )


def _exponents(each: Exponents) -> str:
    """Return the exponents that were read off as text, such as "a 0, b 0.5, c 1, s 0, r 0"."""
    shown = {"a": each.a, "b": each.b, "c": each.c, "s": each.s, "r": each.r, "g": each.g}
    return ", ".join(f"{key} {round(value, 2) + 0.0:g}" for key, value in shown.items() if value is not None)


_CSS = (
    "body{font:15px system-ui;margin:2em;max-width:80em}table{border-collapse:collapse}"
    "td,th{text-align:left;vertical-align:top;padding:.3em .8em .3em 0;border-bottom:1px solid #ddd}"
    ".fail td:first-child{color:#b00020;font-weight:600}.weak td:first-child{color:#a15c00;font-weight:600}"
)

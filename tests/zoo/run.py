"""Measure capture on the whole zoo and write the coverage table.

    python tests/zoo/run.py --out coverage.md            # everything: about an hour on one core
    python tests/zoo/run.py --part 3/10 --only hf        # a tenth of the Hugging Face types

A model that does not build or run eagerly with these inputs is listed apart and not counted.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from check import Row, check
from hard_programs import PROGRAMS
from hard_sequence import SEQUENCE

INTRODUCTION = """\
`transform` first turns a model into a graph. This page lists models for which that was tried.
`python tests/zoo/run.py --out docs/coverage.md` writes it.

| column | meaning |
|---|---|
| captured by | the way of capturing: "symbolic" (torch.fx), "export" (torch.export) or "record" (our recorder) |
| exact | outputs of the graph are those of the model, bit for bit, on several inputs |
| gradients | so are its gradients, up to 2e-3 of the largest entry of each |
| names | the names of Parameters and the `state_dict` keys are those of the model |
| layers | number of weight uses in the layer DAG |
| LP | whether the linear program was solved for it |
| unused | number of parameters that take no part in the outputs |
| said | the error, or the notes in the report |
"""


def rows(groups: list[str], part: int, parts: int) -> Iterator[tuple[str, Row]]:
    """Yield a row per model with its group."""
    if "hard" in groups:
        for case in (SEQUENCE + PROGRAMS)[part::parts]:
            yield "hard", check(case.name, case.model(), case.args, case.kwargs)
    if "hf" in groups:
        import hf

        for each in hf.types()[part::parts]:
            try:
                model, inputs = hf.build(each)
                with torch.no_grad():
                    model(**inputs)
            except Exception as error:
                yield "not run", Row(each.name, error=f"{type(error).__name__}: {error}".splitlines()[0][:100])
                continue
            yield "hf", check(each.name, model, (), inputs)


def table(found: list[tuple[str, Row]]) -> str:
    """Format the rows as Markdown, with the counts in front."""
    lines = ["# Coverage of capture", "", INTRODUCTION]
    for group, title in (("hf", "Hugging Face types"), ("hard", "Hand-written hard cases")):
        some = [row for name, row in found if name == group]
        if not some:
            continue
        good = [row for row in some if row.exact and row.gradients and row.names]
        planned = [row for row in good if row.solved]
        by = {m: sum(row.method == m for row in some) for m in ("symbolic", "export", "record")}
        lines += [f"## {title}", "", f"{len(good)} of {len(some)} captured exactly, gradients and names included ("]
        lines[-1] += ", ".join(f"{count} by {method}" for method, count in by.items()) + ")"
        lines[-1] += f"; {len(planned)} of them go on to a plan with no op unknown."
        if other := [row for row in some if row.method and row.gradients and row.solved and not row.exact]:
            lines += ["", f"{len(other)} more are captured and planned, but equal to 1e-6 only, not bitwise: these"]
            lines[-1] += " models choose another algorithm when `torch.compiler.is_exporting()`."
        lines += [
            "",
            "| model | captured by | exact | gradients | names | layers | LP | unused | CPU s | said |",
            "|---|---|---|---|---|---|---|---|---|---|",
        ]
        for row in some:
            marks = ["yes" if value else "no" for value in (row.exact, row.gradients, row.names)]
            said = (row.error or row.notes).replace("\n", " ").replace("|", "\\|")[:300]
            marks += [str(row.layers), "solved" if row.solved else "no", str(row.unused)]
            lines.append(f"| {row.name} | {row.method or '-'} | {' | '.join(marks)} | {row.seconds:.1f} | {said} |")
        lines.append("")
    skipped = [row for name, row in found if name == "not run"]
    if skipped:
        lines += ["## Not counted: do not build or run eagerly with these configs", ""]
        lines += [f"- {row.name}: {row.error}" for row in skipped] + [""]
    return "\n".join(lines)


def main() -> None:
    """Run the zoo and print a line of progress per model on stderr."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=["hard", "hf"], action="append", help="one group; both without it")
    parser.add_argument("--part", default="0/1", help="i/n: every n-th model, starting at i")
    parser.add_argument("--out", type=Path, help="Markdown table; rows as JSON lines beside it")
    options = parser.parse_args()
    part, parts = map(int, options.part.split("/"))
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    torch.set_num_threads(1)
    found: list[tuple[str, Row]] = []
    for group, row in rows(options.only or ["hard", "hf"], part, parts):
        found.append((group, row))
        mark = "-" if group == "not run" else "ok" if row.exact and row.gradients and row.names else "NO"
        print(
            f"{mark:3} {row.name:45} {row.method:9} {row.seconds:6.1f}s {row.error[:100]!r}",
            file=sys.stderr,
            flush=True,
        )
        if options.out:
            records: list[dict[str, Any]] = [{"group": name, **each.as_dict()} for name, each in found]
            options.out.with_suffix(".jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    text = table(found)
    if options.out:
        options.out.write_text(text)
    else:
        print(text)


if __name__ == "__main__":
    main()

"""Compare the rates of the LP with those that follow from cloning a small model into a large one.

python tests/zoo/clones.py --out clones.jsonl         # every Hugging Face type: about half an hour on one core
python tests/zoo/clones.py --part 3/10 --only llama   # a tenth of the types, those with "llama" in their names
"""

from __future__ import annotations

import argparse
import json
import logging
import re
import sys
import time
import types
import warnings
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from abcfx.capture import capture
from abcfx.capture.options import CaptureMethod
from abcfx.exponents.assign import assign_exponents
from abcfx.exponents.attention import find_attention
from abcfx.exponents.dag_program import DagProgram
from abcfx.exponents.fixed import FixedExponents
from abcfx.growing import clone_exponents
from abcfx.pairing.pair import PairedModels
from abcfx.rules import Layer
from abcfx.theory.optimizers import family
from abcfx.theory.parametrizations import alignment_preset

TOLERANCE = 1e-6


@dataclass
class Clones:
    """A line of the comparison.

    Attributes:
        compared: learning parameters with both exponents.
        grown: parameters with a dim that grows.
        differing: parameter -> [role, c of the LP, clone exponent].
        plain: matrices used once, with nothing of the model's own multiplied in.
        off_formula: those of them whose c + a is not e_in, the closed form of muP with Adam -> [role, c + a, e_in].
        error: why there is no comparison.
    """

    name: str
    method: str = ""
    compared: int = 0
    grown: int = 0
    differing: dict[str, list[Any]] = field(default_factory=dict)
    plain: int = 0
    off_formula: dict[str, list[Any]] = field(default_factory=dict)
    seconds: float = 0.0
    error: str = ""


def compare(
    name: str,
    large: nn.Module,
    small: nn.Module,
    args: tuple[Any, ...] = (),
    kwargs: dict[str, Any] | None = None,
    parametrization: str = "mup",
    method: CaptureMethod = "auto",
    base_call: tuple[Any, Any] | None = None,
) -> Clones:
    """Compare c of the LP (Adam, full alignment) with the clone exponent of every learning parameter."""
    start = time.process_time()
    captured = capture(large, args, kwargs, method=method, verify=False, modes=("train",))
    base = capture(small, *(base_call or (args, kwargs)), method=captured.method, verify=False, modes=("train",))
    row = Clones(name, captured.method)
    parameters = dict(captured.model.named_parameters())
    pair = PairedModels.of_graphs(captured, base)
    dag, growth = pair.target_dag, pair.growth
    decided = assign_exponents(dag, growth, parameters, parametrization)
    setting = FixedExponents(dag, growth, decided, dict.fromkeys(parameters, family("adam")))
    setting = setting.with_attention({each.node: each.missing for each in find_attention(setting) if each.missing})
    solved = DagProgram(setting, setting.aligned(alignment_preset("full"))).solve()
    clones = clone_exponents(setting)
    for parameter, c in solved.c.items():
        row.compared += 1
        row.grown += bool(decided[parameter].e_in or decided[parameter].e_out)
        if abs(c - clones[parameter]) > TOLERANCE:
            row.differing[parameter] = [decided[parameter].role, c, float(clones[parameter])]
    by_formula(row, setting, solved.c)
    row.seconds = time.process_time() - start
    return row


def by_formula(row: Clones, setting: FixedExponents, c: dict[str, float]) -> None:
    """Compare with a second oracle: with multipliers absorbed, c = e_in follows from the shape of a matrix alone."""
    dag = setting.dag
    for parameter, nodes in dag.uses().items():
        kind, decided = dag.kind(nodes[0]), setting.parameters[parameter]
        if len(nodes) > 1 or not isinstance(kind, Layer) or parameter not in c or decided.own:
            continue
        row.plain += 1
        absorbed, e_in = c[parameter] + setting.a(nodes[0]), setting.growth(*kind.fan_in)
        if abs(absorbed - e_in) > TOLERANCE:
            row.off_formula[parameter] = [decided.role, absorbed, e_in]


def wider(module: str, times: int) -> Any:
    """Import the module of hard cases again with a multiple of its WIDTH."""
    path = Path(__file__).parent / f"{module}.py"
    source, found = re.subn(r"(?m)^(WIDTH\b.*?= )(\d+)", lambda m: f"{m[1]}{int(m[2]) * times}", path.read_text())
    assert found == 1, f"{module} has no WIDTH"
    made = types.ModuleType(f"{module}_wide")
    sys.modules[made.__name__] = made  # where pytree and dataclasses look for its classes
    exec(compile(source, str(path), "exec"), made.__dict__)
    return made


def compare_case(module: str, cases: str, index: int) -> Clones:
    """Compare a hard case with itself at twice the WIDTH of its module."""
    small, large = (getattr(wider(module, times), cases)[index] for times in (1, 2))
    return compare(
        small.name, large.model(), small.model(), large.args, large.kwargs, base_call=(small.args, small.kwargs)
    )


def compare_type(each: Any) -> Clones:
    """Compare a Hugging Face type at its smallest width and at twice that; an error is a row too."""
    import hf

    try:
        small, _ = hf.build(each)
        large, inputs = hf.build(each, times=2)
        with torch.no_grad():
            large(**inputs)
    except Exception as error:
        return Clones(each.name, error=f"not built: {type(error).__name__}: {error}".splitlines()[0][:200])
    try:
        return compare(each.name, large, small, (), inputs)
    except Exception as error:
        return Clones(each.name, error=f"{type(error).__name__}: {error}"[:600])


def main() -> None:
    """Compare types and print a line of progress for each on stderr."""
    import hf

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", help="types with one of these in their names")
    parser.add_argument("--part", default="0/1", help="i/n: every n-th type, starting at i")
    parser.add_argument("--out", type=Path, help="rows as JSON lines")
    options = parser.parse_args()
    part, parts = map(int, options.part.split("/"))
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    torch.set_num_threads(1)
    rows = []
    for each in hf.types()[part::parts]:
        if options.only and not any(word in each.name for word in options.only):
            continue
        row = compare_type(each)
        rows.append(row)
        mark = (
            "--"
            if row.error.startswith(("not built", "CaptureError", "UncapturableError", "DrawnInPython"))
            else "NO"
            if row.error or row.differing
            else "ok"
        )
        said = row.error.splitlines()[0] if row.error else dict(list(row.differing.items())[:2]) or ""
        counts = f"{row.compared:4} {len(row.differing):4} {row.seconds:5.1f}s"
        formula = f"{row.plain - len(row.off_formula)}/{row.plain}"
        print(f"{mark} {row.name:45} {row.method:8} {counts} {formula:7} {said}", file=sys.stderr, flush=True)
        if options.out:
            options.out.write_text("".join(json.dumps(asdict(row)) + "\n" for row in rows))


if __name__ == "__main__":
    main()

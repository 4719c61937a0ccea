"""Compare hooks on the submodules of a transformed model of the zoo with those on a model of the user's own class.

python tests/zoo/zoo_hooks.py --out hooks.jsonl          # every Hugging Face type: over an hour on one core
python tests/zoo/zoo_hooks.py --part 3/10 --only llama   # a tenth of the types, those with "llama" in their names
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import time
import warnings
from collections import defaultdict
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from check import run, same
from torch import fx, nn
from torch.utils import _pytree as pytree

import abcfx
from abcfx.capture import capture
from abcfx.errors import AbcfxError
from abcfx.plan.options import ApplyMode
from abcfx.rewrite.frames import GraphBefore
from abcfx.rewrite.nesting import nest

# What a hook saw: a word for its kind, and the shapes of the tensors that went in and came out.
Seen = tuple[str, tuple[tuple[int, ...], ...], tuple[tuple[int, ...], ...]]


@dataclass
class Row:
    """A line of the table.

    Attributes:
        kind: "nested", "flat" (one graph that calls no block) or "own" (the user's class).
        modules: submodules that are called in the user's model.
        graphs: submodules that became a graph.
        refused: path -> the reason why hooks on it are refused.
        differing: path -> how what hooks saw differs.
        backward: whether the user's class takes backward hooks on all its modules.
        equal: how outputs and gradients differ from the flat graph's, here or at the base width; "" if no bit does.
        hooked: how outputs differ from those of the user's class where hooks change arguments; "" if only by rounding.
        seconds: CPU time of the transform.
    """

    name: str
    apply: str
    kind: str = ""
    modules: int = 0
    graphs: int = 0
    refused: dict[str, str] = field(default_factory=dict)
    differing: dict[str, str] = field(default_factory=dict)
    backward: bool = True
    equal: str = ""
    hooked: str = ""
    seconds: float = 0.0
    error: str = ""


def compare(
    name: str,
    large: nn.Module,
    small: nn.Module,
    kwargs: dict[str, Any],
    apply: ApplyMode,
    parametrization: str = "mup",
) -> Row:
    """Transform a model, and compare what hooks on its submodules see, and what it computes."""
    row = Row(name, apply)
    start = time.process_time()
    result = abcfx.transform(large, None, kwargs, base=small, apply=apply, parametrization=parametrization)
    row.seconds = time.process_time() - start
    module, flat = result.module, result.outcome.captured.module
    row.kind = "own" if not isinstance(module, fx.GraphModule) else "flat" if module is flat else "nested"
    row.graphs = sum(isinstance(each, fx.GraphModule) for each in module.modules()) - 1
    own = result.fold()
    if row.kind == "nested":
        row.equal = differences(flat, module, kwargs) or base_differences(small, kwargs)
    for training in (True, False):
        own.train(training)
        module.train(training)
        seen, theirs = Hooks(row), Hooks(row)
        expected = theirs.watch(own, kwargs)
        row.modules = len(theirs.seen)
        if expected is None:
            continue
        got = seen.watch(module, kwargs)
        row.refused |= {path: why for path, why in seen.refused.items() if path in theirs.seen}
        for path in {*theirs.seen, *seen.seen} - {*seen.refused}:
            if seen.seen[path] != theirs.seen[path]:
                row.differing[path] = f"{theirs.seen[path][:3]} in the user's, {seen.seen[path][:3]} in the result"
        if not seen.refused and not row.hooked:
            row.hooked = far(expected, got or [])
    return row


class Hooks:
    """Hooks on every submodule that note what they see; those before a forward scale its arguments."""

    def __init__(self, row: Row) -> None:
        self.row = row
        self.seen: dict[str, list[Seen]] = defaultdict(list)
        self.refused: dict[str, str] = {}
        self._handles: list[Any] = []

    def watch(self, module: nn.Module, kwargs: dict[str, Any]) -> list[Any] | None:
        """Run a model once under the hooks and return its outputs; None if it cannot run so."""
        with_backward = [self.row.backward, False] if self.row.backward else [False]
        state = {name: buffer.clone() for name, buffer in module.named_buffers()}
        for backward in with_backward:
            self.seen.clear()
            try:
                for path, each in module.named_modules():
                    if path:
                        self._hook(path, each, backward)
                return run(module, (), kwargs)
            except RuntimeError as error:
                if not backward or not module.training or isinstance(error, AbcfxError):
                    raise
                self.row.backward = False
                restore(module, state)  # a run that fails half-way has counted in the statistics of batch norms
            finally:
                for handle in self._handles:
                    handle.remove()
                self._handles.clear()
        return None

    def _hook(self, path: str, each: nn.Module, backward: bool) -> None:
        def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
            self.seen[path].append(("pre", shapes((args, kwargs)), ()))
            changed: tuple[Any, Any] = pytree.tree_map_only(torch.Tensor, _scaled, (args, kwargs))
            return changed

        def after(_: nn.Module, args: object, kwargs: object, out: object) -> None:
            self.seen[path].append(("forward", shapes((args, kwargs)), shapes(out)))

        def behind(_: nn.Module, into: object, out: object) -> None:
            self.seen[path].append(("backward", shapes(into), shapes(out)))

        try:
            self._handles.append(each.register_forward_pre_hook(before, with_kwargs=True))
            self._handles.append(each.register_forward_hook(after, with_kwargs=True))
            if backward:
                self._handles.append(each.register_full_backward_hook(behind))
        except AbcfxError as error:
            self.refused[path] = str(error)


def _scaled(tensor: torch.Tensor) -> torch.Tensor:
    """Return floating-point activations a little smaller; anything else as it is."""
    return tensor * 0.95 if tensor.is_floating_point() and tensor.requires_grad else tensor


def restore(module: nn.Module, state: dict[str, torch.Tensor]) -> None:
    """Give the buffers of a module the values that they had."""
    with torch.no_grad():
        for name, buffer in module.named_buffers():
            if name in state:
                buffer.copy_(state[name])


def shapes(values: object) -> tuple[tuple[int, ...], ...]:
    """Return the shapes of the tensors among values, caches and other objects aside."""
    return tuple(tuple(leaf.shape) for leaf in pytree.tree_leaves(values) if isinstance(leaf, torch.Tensor))


def base_differences(small: nn.Module, kwargs: dict[str, Any]) -> str:
    """Say how a module without multipliers differs from the flat graph; "" if bit for bit not at all."""
    captured = capture(small, (), kwargs, verify=False)
    flat = captured.module
    module = nest(captured, {graph: GraphBefore(graph) for graph in flat.graphs}).module
    if module is flat:
        return "flat at the base width"
    text = differences(flat, module, kwargs)
    return f"at the base width: {text}" if text else ""


def differences(flat: nn.Module, module: nn.Module, kwargs: dict[str, Any]) -> str:
    """Say how outputs and gradients of two modules differ; "" if bit for bit not at all."""
    for training in (True, False):
        found = []
        for each in (flat, module):
            each.train(training)
            state = {name: buffer.clone() for name, buffer in each.named_buffers()}
            outputs = run(each, (), kwargs)
            gradients = [p.grad.clone() for p in each.parameters() if p.grad is not None]
            each.zero_grad()
            restore(each, state)
            found.append((outputs, gradients))
        for word, left, right in zip(("outputs", "gradients"), *found, strict=True):
            if len(left) != len(right) or not all(map(same, left, right)):
                return f"{word} of {'train' if training else 'eval'} mode: {far(left, right) or 'rounding'}"
    return ""


def far(left: list[Any], right: list[Any]) -> str:
    """Say how far two lists of values are from each other; "" if only by rounding."""
    if len(left) != len(right):
        return f"{len(left)} and {len(right)} values"
    for index, (a, b) in enumerate(zip(left, right, strict=True)):
        if isinstance(a, torch.Tensor) and a.is_floating_point():
            a, b = a.detach().nan_to_num(7.0), b.detach().nan_to_num(7.0)
            if (a - b).abs().max() > 1e-3 * a.abs().max().clamp(min=1e-6):
                return f"value {index}: {(a - b).abs().max():.1e} of {a.abs().max():.1e}"
    return ""


def compare_type(each: Any, apply: ApplyMode, parametrization: str = "mup") -> Row:
    """Compare a Hugging Face type at twice its smallest width; an error is a row too."""
    import hf

    try:
        small, _ = hf.build(each)
        large, inputs = hf.build(each, times=2)
        with torch.no_grad():
            large(**inputs)
    except Exception as error:
        return Row(each.name, apply, error=f"not built: {type(error).__name__}: {error}".splitlines()[0][:200])
    try:
        return compare(each.name, large, small, inputs, apply, parametrization)
    except Exception as error:
        return Row(each.name, apply, error=f"{type(error).__name__}: {error}".splitlines()[0][:200])


def main() -> None:
    """Compare types and print a line of progress for each on stderr."""
    import hf

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", help="types with one of these in their names")
    parser.add_argument("--apply", nargs="+", default=["insert"], choices=["insert", "absorb"])
    parser.add_argument("--parametrization", default="mup")
    parser.add_argument("--part", default="0/1", help="i/n: every n-th type, starting at i")
    parser.add_argument("--out", type=Path, help="rows as JSON lines, which are added to")
    options = parser.parse_args()
    part, parts = map(int, options.part.split("/"))
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    torch.set_num_threads(1)
    for each in hf.types()[part::parts]:
        if options.only and not any(word in each.name for word in options.only):
            continue
        for apply in options.apply:
            row = compare_type(each, apply, options.parametrization)
            print(_line(row), file=sys.stderr, flush=True)
            if options.out:
                with options.out.open("a") as file:
                    file.write(json.dumps(asdict(row)) + "\n")


def _line(row: Row) -> str:
    """Return a line of progress, and one for the first modules whose hooks are refused or see something else."""
    mark = "--" if row.error else "NO" if row.differing or row.refused or row.equal or row.hooked else "ok"
    said = row.error.splitlines()[0] if row.error else f"{row.equal} {row.hooked}"
    counts = f"{row.modules:4} {row.graphs:4} {len(row.refused):3} {len(row.differing):3} {row.seconds:5.1f}s"
    lines = [f"{mark} {row.name:40} {row.apply:7} {row.kind:6} {counts} {said}"]
    for path, why in [*row.refused.items()][:2] + [*row.differing.items()][:2]:
        lines.append(f"       {path}: {why}".replace("\n", " ")[:300])
    return "\n".join(lines)


if __name__ == "__main__":
    main()

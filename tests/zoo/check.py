"""Capture one model of the zoo and compare it with eager runs, in outputs, gradients, names, layer DAG and LP."""

from __future__ import annotations

import copy
import time
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from abcfx.capture import CapturedGraph, capture
from abcfx.capture.options import CaptureMethod
from abcfx.capture.structure import take_apart
from abcfx.errors import AbcfxError, InvalidInputError
from abcfx.exponents.assign import assign_exponents
from abcfx.exponents.dag_program import DagProgram
from abcfx.exponents.fixed import FixedExponents
from abcfx.pairing.pair import PairedModels
from abcfx.theory.optimizers import family
from abcfx.theory.parametrizations import alignment_preset


@dataclass
class Row:
    """A line of the coverage table; `error` says why the rest is missing."""

    name: str
    method: str = ""
    exact: bool = False
    gradients: bool = False
    names: bool = False
    layers: int = 0
    solved: bool = False
    unused: int = 0
    seconds: float = 0.0
    notes: str = ""
    error: str = ""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def check(
    name: str, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], *, method: CaptureMethod = "auto"
) -> Row:
    """Capture the model, then compare both modes with a copy of it on inputs with another batch."""
    row = Row(name)
    start = time.process_time()
    try:
        captured = capture(model, args, kwargs, method=method)
    except AbcfxError as error:
        row.error, row.seconds = f"{type(error).__name__}: {error}", time.process_time() - start
        return row
    row.method, row.notes, row.seconds = captured.method, "; ".join(captured.notes), time.process_time() - start
    plan(row, captured)
    emitted = captured.module
    row.names = list(emitted.state_dict()) == list(model.state_dict()) and all(
        left is right for left, right in zip(emitted.parameters(), model.parameters(), strict=True)
    )
    row.exact = row.gradients = True
    for training in (True, False):
        twin, graph = copy.deepcopy(model).train(training), copy.deepcopy(emitted).train(training)
        for call in ((args, kwargs), larger(args, kwargs)):
            try:
                expected = run(twin, *call)
            except Exception:
                continue  # the model's own refusal of another batch
            try:
                got = run(graph, *call)
            except InvalidInputError:
                continue  # refused loudly: noted by capture
            row.exact &= len(expected) == len(got) and all(map(same, expected, got))
            if training:
                row.gradients &= same_gradients(twin, graph)
    return row


def plan(row: Row, captured: CapturedGraph) -> None:
    """Build the layer DAG and solve the LP; an op without a rule fails the row."""
    parameters = dict(captured.model.named_parameters())
    try:
        pair = PairedModels.of_graphs(captured)
        dag, growth = pair.target_dag, pair.growth
        decided = assign_exponents(dag, growth, parameters, "mup")
        setting = FixedExponents(dag, growth, decided, dict.fromkeys(parameters, family("adam")))
        solved = DagProgram(setting, {node: alignment_preset("full")[0] for node, _ in dag.layers()}).solve()
    except Exception as error:  # one model's crash is a row of the table, not the end of the run
        row.error = f"{type(error).__name__}: {error}"
        return
    row.layers, row.unused = len(dag.layers()), len(set(parameters) - set(dag.uses()))
    row.solved = not solved.solution.unconstrained


def larger(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the inputs with two more rows in the batch, the first dim of the first tensor."""
    tensors = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor) and leaf.dim()]
    batch = tensors[0].shape[0]

    def grow(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.dim() == 0 or tensor.shape[0] != batch:
            return tensor
        return torch.cat([tensor.flip(0), tensor[:2]])

    changed: tuple[tuple[Any, ...], dict[str, Any]] = pytree.tree_map_only(torch.Tensor, grow, (args, kwargs))
    return changed


def run(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
    """Return all outputs, after a backward pass from the sum of their squares."""
    module.zero_grad()
    torch.manual_seed(5)
    args, kwargs = pytree.tree_map_only(torch.Tensor, torch.clone, (args, kwargs))
    outputs, _ = take_apart(module(*args, **kwargs))
    if module.training:
        loss = sum(o.abs().square().sum() for o in outputs if isinstance(o, torch.Tensor) and o.requires_grad)
        if isinstance(loss, torch.Tensor):
            loss.backward()
    return outputs


def same(left: Any, right: Any) -> bool:
    """Compare bitwise; NaN is equal to NaN."""
    if not isinstance(left, torch.Tensor):
        return bool(left == right)
    return left.dtype == right.dtype and torch.equal(left.nan_to_num(7.0), right.nan_to_num(7.0))


def same_gradients(left: nn.Module, right: nn.Module) -> bool:
    """Compare gradients to 2e-3 of the largest entry of each; none may be missing."""
    pairs = list(zip(left.parameters(), right.parameters(), strict=True))
    largest = max((float(a.grad.abs().max()) for a, _ in pairs if a.grad is not None and a.grad.numel()), default=0.0)
    for a, b in pairs:
        if (a.grad is None) != (b.grad is None):
            return False
        if a.grad is not None and b.grad is not None:
            bound = 2e-3 * float(a.grad.abs().max()) + 1e-5 * largest if a.grad.numel() else 0.0
            if not bool(((a.grad - b.grad).abs() <= bound).all()):
                return False
    return True

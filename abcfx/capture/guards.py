"""Check on every call what a captured graph assumed about the sizes of its inputs."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import fx
from torch.fx.experimental.symbolic_shapes import SYMPY_INTERP

from abcfx.capture.fake import FakeInputs
from abcfx.errors import InvalidInputError

# Raises for placeholders' values that a graph is not right for.
Guards = Callable[[Sequence[object]], None]
# The most common guard is on one size of one input; a size has a word in messages.
_ONE_SIZE = re.compile(r"(\w+)\.(?:size\(\)|shape)\[(\d+)\] == (\d+)")
_RECORDED_SIZE = re.compile(r"L\[['\"]t(\d+)['\"]\]\.size\(\)\[(\d+)\] == (\d+)")
_PYTHON = "a Python loop or branch over sizes fixed it"
_IMAGES = "sizes of images are fixed where symbolic tracing cannot capture a model"
_DIMS = {0: "batch {}", 1: "length {}"}


class SizesRefused(InvalidInputError):
    """The error that inputs have sizes that a captured graph is not right for.

    Attributes:
        note: the same as a statement about the graph, for a report.
    """

    def __init__(self, needs: str, why: str) -> None:
        """Make the message of the error: for which sizes the graph is right, and what fixed them.

        Args:
            needs: which sizes the graph is right for.
            why: what fixed these sizes.
        """
        self.note = f"works only for {needs} ({why})"
        super().__init__(
            f"These inputs have other sizes than this graph was captured for: it {self.note}.\n"
            "  To fix: call it with such inputs, or capture again with example inputs of the new size; or "
            "apply='inplace', which keeps the model's own forward and limits nothing."
        )


def guards_of_export(exported: fx.GraphModule, program: torch.export.ExportedProgram, slots: Sequence[str]) -> Guards:
    """Return the check that torch.export made of the sizes of inputs, to be run on every call of the graph.

    torch keeps all its conditions, also those of branches in the model, in a module of the exported graph. Older
    versions of torch have the ranges and equalities of input dims only.

    Args:
        exported: the module that torch.export made.
        program: the exported program.
        slots: names of the graph's inputs, for messages.
    """
    node = next(iter(exported.graph.find_nodes(op="call_module", target="_guards_fn")), None)
    check = exported.get_submodule("_guards_fn").forward if node is not None else _range_checks(exported, program)
    shapes = [getattr(node.meta["val"], "shape", ()) for node in exported.graph.find_nodes(op="placeholder")]
    fixed = [
        (number, dim, size)
        for number, shape in enumerate(shapes)
        for dim, size in enumerate(shape)
        if not isinstance(size, torch.SymInt)
    ]
    return _refusing(check, slots, fixed)


def guards_of_record(fake: FakeInputs | None, slots: Sequence[str], inputs: Mapping[str, torch.Tensor]) -> Guards:
    """Return the check of the sizes of inputs for a recorded graph, to be run on every call of the graph.

    Args:
        fake: the fake inputs of the run, whose assumptions about sizes are checked; None for a run on real inputs,
            whose exact sizes are.
        slots: names of the graph's inputs.
        inputs: the inputs of the run by name.
    """
    code = fake.guards() if fake is not None else []
    if fake is None:
        for number, name in enumerate(slots):
            code += [f"L['t{number}'].size()[{dim}] == {size}" for dim, size in enumerate(inputs[name].shape)]
    namespace: dict[str, object] = {**SYMPY_INTERP, "math": math, "inf": math.inf}
    lines = ["def check(*flat):", "    L = {f't{n}': tensor for n, tensor in enumerate(flat)}"]
    for each in code:
        shown = re.sub(r"L\[['\"]t(\d+)['\"]\]", r"flat_\1", each).strip("() ")
        lines += [f"    if not ({each}):", f"        raise AssertionError({shown!r})"]
    exec("\n".join(lines), namespace)
    check = namespace["check"]
    assert callable(check)
    found = [_RECORDED_SIZE.fullmatch(each.strip("() ")) for each in code]
    fixed = [(int(number), int(dim), int(size)) for number, dim, size in (each.groups() for each in found if each)]
    return _refusing(check, slots, fixed)


def _refusing(check: Callable[..., object], slots: Sequence[str], fixed: Sequence[tuple[int, int, int]]) -> Guards:
    """Return a check of inputs that raises `SizesRefused`, in the model's names, where `check` fails an assertion.

    Args:
        check: stops at the first condition that fails.
        slots: names of the graph's inputs.
        fixed: number of an input, dim and size, for each size that is fixed; all that fail are told.
    """

    def guards(flat: Sequence[object]) -> None:
        """Raise `SizesRefused` if a call's tensors have sizes for which the captured graph is not right."""
        try:
            check(*flat)
        except AssertionError as error:
            shapes = [tuple(getattr(value, "shape", ())) for value in flat]
            wrong = [each for each in fixed if shapes[each[0]][each[1] : each[1] + 1] != (each[2],)]
            told = [_size_in_words(slots[number], dim, size) for number, dim, size in wrong]
            first = needs(str(error), slots)
            of_images = first in told and all(dim >= 2 and len(shapes[number]) >= 4 for number, dim, _ in wrong)
            text = ", ".join(told if first in told else [first, *told])
            raise SizesRefused(text, _IMAGES if of_images else _PYTHON) from None

    return guards


def needs(failed: str, slots: Sequence[str]) -> str:
    """Describe the sizes that a failed condition asks for, in the names of the model's arguments, as "batch 3 of x".

    Args:
        failed: the condition as code of torch's, in which input number 0 is called flat_0.
        slots: names of the graph's inputs, in order.
    """
    named = re.sub(r"\bflat_(\d+)", lambda match: slots[int(match[1])], failed.removeprefix("Guard failed: "))
    one_size = _ONE_SIZE.fullmatch(named.strip("() "))
    if one_size is None:
        return named
    name, dim, size = one_size.groups()
    return _size_in_words(name, int(dim), int(size))


def _size_in_words(name: str, dim: int, size: int) -> str:
    """Return the size of a dim of an input in words, such as "batch 3 of x"."""
    return f"{_DIMS.get(dim, f'size {{}} in dim {dim}').format(size)} of {name}"


def _range_checks(exported: fx.GraphModule, program: torch.export.ExportedProgram) -> Callable[..., None]:
    """Return a check that each size of an input lies in its range, and that equal symbols have equal sizes.

    Args:
        exported: the module that torch.export made, whose placeholders have symbols for sizes.
        program: the exported program, which has the range of each symbol.
    """
    ranges = {str(symbol): limits for symbol, limits in program.range_constraints.items()}
    shapes = [tuple(map(str, node.meta["val"].shape)) for node in exported.graph.find_nodes(op="placeholder")]

    def check(*flat: torch.Tensor) -> None:
        """Raise an AssertionError if an input's size is out of range, or sizes that should be equal differ."""
        seen: dict[str, int] = {}
        for number, (tensor, shape) in enumerate(zip(flat, shapes, strict=True)):
            for dim, (size, text) in enumerate(zip(tensor.shape, shape, strict=True)):
                expected = int(text) if text.isdigit() else seen.setdefault(text, size)
                limits = ranges.get(text)
                inside = limits is None or limits.lower <= size <= limits.upper
                if size != expected or not inside:
                    raise AssertionError(f"flat_{number}.size()[{dim}] == {text} (in {limits})")

    return check

"""Find out how train and eval mode of a model differ, by a run of each on fake tensors: one export may serve both."""

from __future__ import annotations

import copy
import inspect
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode

from abcfx.capture.aten import CallLogger
from abcfx.capture.dispatch import AtenOp
from abcfx.capture.fake import is_fake, off_meta, replace_weights
from abcfx.capture.graphs import as_argument
from abcfx.capture.python_state import same_numbers
from abcfx.capture.randomness import no_hidden_randomness
from abcfx.capture.signature import Signature
from abcfx.capture.state import preserved
from abcfx.capture.state_spaces import Change
from abcfx.capture.structure import Container, Fixed, Part, Value, attributes_of, take_apart
from abcfx.support import trees
from abcfx.support.running import both_modes_restored, preserved_rng, set_mode

_aten = torch.ops.aten


class _Switching(NamedTuple):
    """A function of torch that drops entries at random, as the call of an aten op that stands for it in an export.

    Attributes:
        op: the aten op.
        parameters: the function's parameters with their defaults, in order.
        switches: which of them switch dropping on and off, each with its index among the arguments of the op.
        is_new: whether the result is always a new tensor, whose strides depend on the kernel that torch chooses.
    """

    op: AtenOp
    parameters: inspect.Signature
    switches: Mapping[str, int]
    is_new: bool = False


def _with_defaults(*required: str, **defaults: object) -> inspect.Signature:
    """Return a call signature of parameters without, and then with, default values."""
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    plain = [inspect.Parameter(name, kind) for name in required]
    return inspect.Signature(plain + [inspect.Parameter(name, kind, default=each) for name, each in defaults.items()])


# Functions of torch that a graph holds as one node each, whose arguments say whether entries are dropped.
_FUNCTIONS: Mapping[object, _Switching] = {
    F.dropout: _Switching(_aten.dropout.default, inspect.signature(F.dropout), {"p": 1, "training": 2}),
    torch.dropout: _Switching(_aten.dropout.default, _with_defaults("input", "p", "train"), {"p": 1, "train": 2}),
    F.scaled_dot_product_attention: _Switching(
        _aten.scaled_dot_product_attention.default,
        _with_defaults(
            *("query", "key", "value"), attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False
        ),
        {"dropout_p": 4},
        is_new=True,
    ),
}
# How far objects among the arguments of modules are looked into.
_DEPTH = 4
_OPS = frozenset(each.op for each in _FUNCTIONS.values())


@dataclass(frozen=True)
class Switch:
    """One call that drops entries at random, as dropout does, in one run of a model. All but `values` is compared.

    Attributes:
        op: the aten op that an export has for it.
        position: how many aten calls the run had made before.
        given: the other arguments as text.
        result: the number of the tensor that it returned, among those of the run.
        values: the arguments that switch dropping on and off, by their index among the arguments of the op.
    """

    op: AtenOp
    position: int
    given: str
    result: object
    values: Mapping[int, object] = field(compare=False)

    @property
    def share(self) -> float:
        """The share of entries that the call drops: 0 where dropping is switched off."""
        return float(math.prod(float(value) for value in self.values.values() if isinstance(value, (int, float))))


@dataclass(frozen=True)
class ModeDifference:
    """How train and eval mode of a model differ, where they differ in what dropout does and in nothing else.

    Attributes:
        switches: by mode, True for train mode, the calls that drop entries, in order.
        changes: by mode, what forward changed in Python.
    """

    switches: Mapping[bool, Sequence[Switch]]
    changes: Mapping[bool, Sequence[Change]]

    @property
    def is_none(self) -> bool:
        """Whether the modes do not differ at all: both drop the same shares of entries."""
        train, evaluate = self.switches[True], self.switches[False]
        return [each.share for each in train] == [each.share for each in evaluate]

    def other_graph(self, graph: fx.Graph, *, training: bool) -> fx.Graph | None:
        """Return the graph of one mode, as a copy of the exported graph of the other in which dropout is switched.

        None if the nodes of dropout in the graph are not those that were seen in the run.

        Args:
            graph: the exported graph.
            training: the mode of the graph to make, True for train mode; `graph` is of the other.
        """
        here, there = self.switches[not training], self.switches[training]
        if Counter(each.op for each in here) != Counter(node.target for node in _droppers(graph)):
            return None
        switched = copy.deepcopy(graph)
        of_op = {op: iter([node for node in _droppers(switched) if node.target is op]) for op in _OPS}
        for before, after in zip(here, there, strict=True):
            node = next(of_op[before.op])
            if any(repr(_argument(node, before.op, index)) != repr(value) for index, value in before.values.items()):
                return None
            for index, value in after.values.items():
                _set_argument(node, after.op, index, value)
        return switched


def mode_difference(model: nn.Module, signature: Signature, examples: Mapping[str, object]) -> ModeDifference | None:
    """Return how train and eval mode differ, if they run the same ops on the same tensors but for dropout; else None.

    The two runs cost a small part of an export. Also None if the runs fail, or if there is a batch norm.

    Args:
        model: the model.
        signature: how the model is called, and which of its arguments become placeholders.
        examples: the example value of every placeholder.
    """
    if any(isinstance(module, _BatchNorm) for module in model.modules()):
        return None
    try:
        with both_modes_restored(model):
            set_mode(model, True)
            train = _run(model, signature, examples)
            set_mode(model, False)
            evaluate = _run(model, signature, examples)
        if train != evaluate or not train.same_constants(evaluate):
            return None
        return ModeDifference(
            {True: train.switches, False: evaluate.switches}, {True: train.changes, False: evaluate.changes}
        )
    except Exception:  # the user's forward may raise anything on fake tensors; the export meets it too and explains it
        return None


@dataclass
class _Run:
    """What one run of a model on fake tensors (shapes without values) did. All but its last two attributes is compared.

    Attributes:
        operations: the aten calls, each with its arguments as text, which tells 0.0 from False.
        switches: the calls that drop entries at random.
        modules: paths of the submodules as they were called, and as they returned, with how arguments or output are
            nested, and what in these is no tensor.
        returned: the same of the model's output, and its tensors.
        constants: the tensors with values that forward made.
        changes: what forward changed in Python.
    """

    operations: list[tuple[object, str]]
    switches: list[Switch]
    modules: list[tuple[str, bool, object]]
    returned: tuple[object, str]
    constants: list[torch.Tensor] = field(compare=False)
    changes: list[Change] = field(compare=False)

    def same_constants(self, other: _Run) -> bool:
        """Whether forward made the same tensors with values in another run."""
        here, there = self.constants, other.constants
        return [each.dtype for each in here] == [each.dtype for each in there] and all(map(same_numbers, here, there))


def _run(model: nn.Module, signature: Signature, examples: Mapping[str, object]) -> _Run:
    """Run a model, in its present mode, on fake tensors (shapes without values); return what it did.

    Args:
        model: the model.
        signature: how the model is called, and which of its arguments become placeholders.
        examples: the example value of every placeholder.
    """
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    fake = trees.map_leaves_of(
        torch.Tensor, lambda tensor: mode.from_tensor(tensor, static_shapes=True), off_meta(dict(examples))
    )
    with _calls_of_modules(model) as modules, preserved(model) as before, preserved_rng():
        replace_weights(model, mode)
        logger = _Logger(model)
        switches = _Switches(logger)
        with no_hidden_randomness(before.generators), mode, logger, switches:
            output = signature.call(model, signature.rebuild(fake))
        values, nested = take_apart(output)
        returned = _plain(nested), repr(logger.refs(values))
        operations: list[tuple[object, str]] = [
            (call.op, repr((call.args, call.kwargs))) for call in logger.trace.calls
        ]
    return _Run(operations, switches.found, modules, returned, logger.constants, before.undone)


class _Logger(CallLogger):
    """A torch mode that writes the aten calls of a run down, except while it is paused.

    Attributes:
        paused: whether calls are not written down now.
        constants: the tensors with values that calls were given, such as those of `torch.tensor(2.0)`.
    """

    def __init__(self, model: nn.Module) -> None:
        """Start an empty log."""
        super().__init__(model, copies=True)
        self.paused = False
        self.constants: list[torch.Tensor] = []

    def watch(self, op: AtenOp, args: tuple[object, ...], kwargs: dict[str, object]) -> object:
        """Run an aten call and return its result; write it down unless paused."""
        if self.paused:
            return op(*args, **kwargs)
        self.constants += [each for each in args if isinstance(each, torch.Tensor) and not is_fake(each)]
        return super().watch(op, args, kwargs)


class _Switches(TorchFunctionMode):
    """A torch mode that notes the calls which drop entries at random, in place of the aten calls that they consist of.

    Args:
        logger: writes down all other calls.

    Attributes:
        found: the calls so far.
    """

    def __init__(self, logger: _Logger) -> None:
        super().__init__()
        self.found: list[Switch] = []
        self._logger = logger

    def __torch_function__(
        self,
        func: Callable[..., object],
        types: object,
        args: tuple[object, ...] = (),
        kwargs: dict[str, object] | None = None,
    ) -> object:
        """Make a call of torch; if it drops entries, note it, and return a new tensor even if it returned its input."""
        switching, logger = _FUNCTIONS.get(func), self._logger
        if switching is None or logger.paused:
            return func(*args, **(kwargs or {}))
        bound = switching.parameters.bind(*args, **(kwargs or {}))
        bound.apply_defaults()
        given = dict(bound.arguments)
        if given.get("inplace"):
            return func(*args, **(kwargs or {}))
        values = {index: given.pop(name) for name, index in switching.switches.items()}
        before = len(logger.trace.calls), repr(logger.refs(given))
        logger.paused = True
        try:
            out = func(*args, **(kwargs or {}))
            assert isinstance(out, torch.Tensor)
            # A graph has the op in both modes, so that its result counts as one tensor of one layout in both.
            out = out.clone(memory_format=torch.contiguous_format) if switching.is_new else _aten.alias.default(out)
        finally:
            logger.paused = False
        self.found.append(Switch(switching.op, *before, logger.refs(out), values))
        return out


@contextmanager
def _calls_of_modules(model: nn.Module) -> Iterator[list[tuple[str, bool, object]]]:
    """Yield a list of the calls of submodules within the block: path, whether it returns, and how values are nested."""
    found: list[tuple[str, bool, object]] = []

    def entering(path: str) -> Callable[..., None]:
        """Return a hook that notes that the module at a path is called."""
        return lambda _, args, kwargs: found.append((path, False, _plain(take_apart((args, dict(kwargs)))[1])))

    def leaving(path: str) -> Callable[..., None]:
        """Return a hook that notes that the module at a path returns."""
        return lambda _, args, kwargs, output: found.append((path, True, _plain(take_apart(output)[1])))

    with ExitStack() as stack:
        for path, module in model.named_modules():
            if path:
                before = module.register_forward_pre_hook(entering(path), with_kwargs=True, prepend=True)
                after = module.register_forward_hook(leaving(path), with_kwargs=True)
                stack.callback(before.remove)
                stack.callback(after.remove)
        yield found


def _plain(part: Part) -> object:
    """Return how a call's arguments or output are nested, and what in them is no tensor, as a value to compare."""
    if isinstance(part, Value):
        return part
    if isinstance(part, Fixed):
        return _contents(part.value, _DEPTH)
    if isinstance(part, Container):
        return part.spec, tuple(map(_plain, part.parts))
    return part.cls, *((key, _plain(each)) for key, each in (part.attributes | part.entries).items())


def _contents(value: object, depth: int) -> object:
    """Return a value to compare for one that is no tensor: itself, or for an object without `==` all that it holds."""
    if isinstance(value, (list, tuple)):
        return type(value), tuple(_contents(each, depth) for each in value)
    if type(value).__eq__ is not object.__eq__ or not depth or isinstance(value, nn.Module) or callable(value):
        return type(value), value
    return type(value), {name: _contents(each, depth - 1) for name, each in attributes_of(value).items()}


def _droppers(graph: fx.Graph) -> list[fx.Node]:
    """Return the nodes of a graph that may drop entries at random and can be switched, in order."""
    return [node for node in graph.nodes if node.op == "call_function" and node.target in _OPS]


def _argument(node: fx.Node, op: AtenOp, index: int) -> object:
    """Return an argument of a node that calls an aten op, or the default of the op, by its index among the op's."""
    if index < len(node.args):
        return node.args[index]
    declared = op._schema.arguments[index]
    return node.kwargs.get(declared.name, declared.default_value)


def _set_argument(node: fx.Node, op: AtenOp, index: int, value: object) -> None:
    """Set an argument of a node that calls an aten op, by its index among the op's arguments."""
    if index < len(node.args):
        node.update_arg(index, as_argument(value))
    else:
        node.update_kwarg(op._schema.arguments[index].name, as_argument(value))

"""A model's calling convention, kept in its graph: argument names, keywords, defaults, nested containers in and out.

A graph takes a flat list of tensors, its placeholders. A `Signature` says how the arguments of a call become that list.
"""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn

from abcfx.capture.structure import Part, put_together
from abcfx.errors import InvalidInputError
from abcfx.support import trees

_MISSING = inspect.Parameter.empty
_IDENTITY: object = object.__eq__
# How many shapes, and characters of other values, an error prints.
_SHAPES, _WIDTH = 4, 100


@dataclass(frozen=True)
class Slot:
    """A leaf of a model's arguments that becomes a placeholder of the graph, by the placeholder's name."""

    name: str


@dataclass(frozen=True)
class Constant:
    """A leaf of a model's arguments whose value is part of the graph; a call with another value is refused."""

    value: object


@dataclass(frozen=True)
class ArgumentTree:
    """One argument of a model: how it is nested, and for each leaf whether it is a placeholder or a constant.

    Attributes:
        spec: torch's description of the nested containers.
        leaves: the leaves in order, a Slot for a placeholder.
    """

    spec: trees.TreeSpec
    leaves: tuple[Slot | Constant, ...]

    def __reduce__(self) -> tuple[object, ...]:
        """Pickle the description of an argument by an example of it, since torch's own description does not pickle."""
        # Pickled as an example of the tree: torch's own description of a tree warns when it is unpickled.
        return _argument_like, (trees.unflatten([0] * len(self.leaves), self.spec), self.leaves)


def _argument_like(example: object, leaves: tuple[Slot | Constant, ...]) -> ArgumentTree:
    """Return an ArgumentTree nested as `example` is; pickle calls it, as torch's own description does not pickle."""
    return ArgumentTree(trees.structure(example), leaves)


@dataclass(frozen=True, eq=False)
class Signature:
    """A model's call signature: how its arguments become the graph's placeholders, and how its output is built.

    Attributes:
        parameters: the signature of the model's forward.
        arguments: by name, how each argument becomes placeholders and constants.
        output: the recipe that builds the model's output from the graph's flat outputs; None when they are the same.
        guards: a check that raises for values of the placeholders that the graph is not right for; run on every call.
        positional: how many arguments the example gave by position.
        omitted: names of the arguments that the example left at their defaults.
    """

    parameters: inspect.Signature
    arguments: Mapping[str, ArgumentTree]
    output: Part | None = None
    guards: Callable[[Sequence[object]], None] | None = None
    positional: int = 0
    omitted: frozenset[str] = frozenset()

    def __deepcopy__(self, memo: dict[int, object]) -> Signature:
        """Return this call signature itself: nothing in it ever changes, so that a copy of a graph can share it."""
        return self  # nothing in it ever changes

    @property
    def slots(self) -> list[str]:
        """Names of the placeholders, in the order of the graph's inputs."""
        return [leaf.name for argument in self.arguments.values() for leaf in argument.leaves if isinstance(leaf, Slot)]

    @property
    def is_plain(self) -> bool:
        """Whether each argument of the model is one required placeholder, and calls check no sizes.

        The generated forward then hands its arguments to the graph as they are.
        """
        return self.guards is None and all(
            argument.leaves == (Slot(name),) and self.parameters.parameters[name].default is _MISSING
            for name, argument in self.arguments.items()
        )

    def bind(self, *args: object, **kwargs: object) -> dict[str, object]:
        """Return the arguments of a call of the model by name, with defaults filled in."""
        bound = self.parameters.bind(*args, **kwargs)
        bound.apply_defaults()
        return dict(bound.arguments)

    def flatten(self, values: Mapping[str, object]) -> list[object]:
        """Return the values of the graph's placeholders, in order, for arguments of the model by name.

        Raises:
            InvalidInputError: the graph was not captured for such arguments: other containers, another constant, None
                in the place of a tensor, or sizes that the graph is not right for.
        """
        flat: list[object] = []
        for name, argument in self.arguments.items():
            value = values[name]
            if argument.spec.is_leaf():
                leaves = [value]
            else:
                leaves, spec = trees.flatten(value)
                if spec != argument.spec:
                    raise InvalidInputError(
                        _refusal(name, textwrap.shorten(f"a {argument.spec}", _WIDTH), _describe(value))
                    )
            for leaf, got in zip(argument.leaves, leaves, strict=True):
                if isinstance(leaf, Slot):
                    if got is None:
                        raise InvalidInputError(_refusal(name, "a tensor", "None"))
                    flat.append(got)
                elif not _same(leaf.value, got):
                    raise InvalidInputError(_refusal(name, repr(leaf.value), _describe(got)))
        if self.guards is not None:
            self.guards(flat)
        return flat

    def unflatten(self, outputs: Sequence[object]) -> object:
        """Build the model's output, with its containers, from the graph's flat outputs."""
        return outputs if self.output is None else put_together(self.output, outputs)

    def rebuild(self, slot_values: Mapping[str, object]) -> dict[str, object]:
        """Return the model's arguments by name, made of constants and of the given values of the placeholders."""
        return {
            name: trees.unflatten(
                [slot_values[leaf.name] if isinstance(leaf, Slot) else leaf.value for leaf in argument.leaves],
                argument.spec,
            )
            for name, argument in self.arguments.items()
        }

    def call(self, function: Callable[..., object], values: Mapping[str, object]) -> object:
        """Call a function with the same arguments by position, and the same ones left out, as in the example call.

        Decorated functions may treat an argument by keyword, or one left out, in their own way.

        Args:
            function: the function, which takes the model's arguments.
            values: the arguments by name.
        """
        positional: list[object] = []
        keywords: dict[str, object] = {}
        for index, (name, parameter) in enumerate(self.parameters.parameters.items()):
            value = values[name]
            if parameter.kind is parameter.VAR_POSITIONAL:
                assert isinstance(value, Iterable)
                positional.extend(value)
            elif parameter.kind is parameter.VAR_KEYWORD:
                assert isinstance(value, Mapping)
                keywords.update(value)
            elif name in self.omitted:
                continue
            elif parameter.kind is parameter.KEYWORD_ONLY or index >= self.positional:
                keywords[name] = value
            else:
                positional.append(value)
        return function(*positional, **keywords)

    def with_output(self, output: Part) -> Signature:
        """Return the signature with a recipe that builds the model's output from the graph's flat outputs."""
        return replace(self, output=output)

    def with_guards(self, guards: Callable[[Sequence[object]], None]) -> Signature:
        """Return the signature with a check of the placeholders' values on every call."""
        return replace(self, guards=guards)


def signature_of(
    model: nn.Module, args: tuple[object, ...] | None, kwargs: dict[str, object] | None
) -> tuple[Signature, dict[str, torch.Tensor]]:
    """Return a model's call signature, and the example value of every placeholder.

    Each tensor among the example inputs becomes a placeholder of the graph, and everything else a constant.

    Args:
        model: the model whose forward is called.
        args: positional example inputs. Without any examples, arguments that have a default are constants with it.
        kwargs: keyword example inputs.

    Raises:
        InvalidInputError: forward does not take the example inputs.
    """
    signature, examples = _signature_of(model, args, kwargs, lambda leaf: isinstance(leaf, torch.Tensor))
    return signature, {name: value for name, value in examples.items() if isinstance(value, torch.Tensor)}


def call_signature_of(
    module: nn.Module, args: tuple[object, ...], kwargs: dict[str, object], kind: type
) -> tuple[Signature, dict[str, object]]:
    """Return the call signature of a module, and what stands for every placeholder: the leaves of one class.

    Args:
        module: the module whose forward is called.
        args: positional arguments of a call.
        kwargs: keyword arguments of the call.
        kind: the class of the leaves that become placeholders, such as `fx.Node`; all others become constants.

    Raises:
        InvalidInputError: forward does not take the arguments.
    """
    return _signature_of(module, args, kwargs, lambda leaf: isinstance(leaf, kind))


def opaque_signature_of(
    model: nn.Module, args: tuple[object, ...] | None, kwargs: dict[str, object] | None
) -> tuple[Signature, dict[str, object]]:
    """Return a model's call signature and example values, with placeholders also for objects such as batches of graphs.

    Objects that cannot be compared by what they hold cannot be constants. Only symbolic tracing can use such
    placeholders.

    Args:
        model: the model whose forward is called.
        args: positional example inputs; None if there are none.
        kwargs: keyword example inputs; None if there are none.
    """
    return _signature_of(model, args, kwargs, lambda leaf: isinstance(leaf, torch.Tensor) or not _is_constant(leaf))


def _signature_of(
    model: nn.Module,
    args: tuple[object, ...] | None,
    kwargs: dict[str, object] | None,
    is_slot: Callable[[object], bool],
) -> tuple[Signature, dict[str, object]]:
    """Return a model's call signature and the example value of every placeholder of its graph.

    Args:
        model: the model whose forward is called.
        args: positional example inputs; None if there are none.
        kwargs: keyword example inputs; None if there are none.
        is_slot: whether a leaf of the example inputs becomes a placeholder; the others are constants.

    Raises:
        InvalidInputError: forward does not take the example inputs.
    """
    parameters = inspect.signature(model.forward)
    parameters = parameters.replace(
        parameters=[each.replace(annotation=_MISSING) for each in parameters.parameters.values()],
        return_annotation=_MISSING,
    )
    values: dict[str, object] = {}
    if args is not None or kwargs is not None:
        try:
            values = parameters.bind(*(args or ()), **(kwargs or {})).arguments
        except TypeError as error:
            named = [name for name, each in parameters.parameters.items() if each.default is each.empty]
            raise InvalidInputError(
                f"The example inputs do not fit {type(model).__name__}.forward: {error}.\n"
                f"  To fix: give what it takes, ({', '.join(named)}{',' * (len(named) == 1)}), as one tuple, or a "
                f"dict of keyword inputs."
            ) from None
    arguments: dict[str, ArgumentTree] = {}
    examples: dict[str, object] = {}
    taken = set(parameters.parameters)
    for name, parameter in parameters.parameters.items():
        free = name not in values and parameter.default is _MISSING
        if free and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            arguments[name] = ArgumentTree(trees.structure(0), (Slot(name),))
            continue
        arguments[name], slot_values = _argument(parameter, values, is_slot, taken)
        examples |= slot_values
    omitted = {
        name for name, each in parameters.parameters.items() if name not in values and each.default is not _MISSING
    }
    positional = len(args) if args is not None else len(parameters.parameters)
    return Signature(parameters, arguments, positional=positional, omitted=frozenset(omitted)), examples


def _argument(
    parameter: inspect.Parameter, values: Mapping[str, object], is_slot: Callable[[object], bool], taken: set[str]
) -> tuple[ArgumentTree, dict[str, object]]:
    """Return how one argument becomes placeholders and constants, and the example values of its placeholders.

    Args:
        parameter: the argument in the signature of forward.
        values: the example's arguments by name.
        is_slot: whether a leaf of the argument becomes a placeholder.
        taken: names in use, to which those of the new placeholders are added.
    """
    empty = parameter.default
    if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
        empty = () if parameter.kind is parameter.VAR_POSITIONAL else {}
    leaves, spec = trees.flatten(values.get(parameter.name, empty))
    kinds: list[Slot | Constant] = []
    examples: dict[str, object] = {}
    for number, leaf in enumerate(leaves):
        if not is_slot(leaf):
            kinds.append(Constant(leaf))
            continue
        slot = parameter.name if spec.is_leaf() else _fresh(f"{parameter.name}_{number}", taken)
        examples[slot] = leaf
        kinds.append(Slot(slot))
    return ArgumentTree(spec, tuple(kinds)), examples


def _fresh(name: str, taken: set[str]) -> str:
    """Return a name for a placeholder, with underscores added until it is not in `taken`, and add it there."""
    while name in taken:
        name += "_"
    taken.add(name)
    return name


def _is_constant(value: object) -> bool:
    """Whether a value can be compared by what it holds, so that it can be a constant that every call checks."""
    plain = (bool, int, float, complex, str, bytes, type, torch.dtype, torch.device, torch.layout)
    return value is None or isinstance(value, plain) or type(value).__eq__ is not _IDENTITY


def _same(expected: object, got: object) -> bool:
    """Whether a call got the constant that the graph was captured with: that object, or an equal one of its type."""
    if expected is got:
        return True
    if type(expected) is not type(got) or isinstance(got, torch.Tensor):
        return False
    as_list = getattr(expected, "tolist", None)  # arrays have no truth value when they are compared
    return bool(expected == got) if as_list is None else bool(as_list() == got.tolist())  # type: ignore[attr-defined]


def _describe(value: object) -> str:
    """Return a value as text for an error: tensors, also in containers, by their shapes, anything else by its repr."""
    if isinstance(value, torch.Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    found = [str(tuple(tensor.shape)) for tensor in trees.tensors(value)]
    if not found:
        return textwrap.shorten(repr(value), _WIDTH)
    more = f" and {len(found) - _SHAPES} more" if len(found) > _SHAPES else ""
    return f"a {type(value).__name__} with tensors of shape {', '.join(found[:_SHAPES])}{more}"


def _refusal(name: str, expected: str, got: str) -> str:
    """Return the message that an argument of a call differs from what the graph was captured with, and how to fix it.

    Args:
        name: name of the argument.
        expected: what the graph was captured with, in words.
        got: what the call has, in words.
    """
    return (
        f"forward({name}=...): this graph was captured with {expected} and was called with {got}.\n"
        f"  To fix: capture again with example inputs that have the new value, abcfx.transform(model, args, "
        f"{{{name!r}: ...}});\n"
        f"  or apply='inplace', which keeps the model's own forward, with any arguments."
    )

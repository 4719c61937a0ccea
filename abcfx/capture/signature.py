"""The model's own calling convention, kept: argument names, keywords, defaults, nested containers in and out."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import fx, nn

from abcfx.capture.structure import Part, put_together
from abcfx.errors import InvalidInputError
from abcfx.support import trees

_GLOBAL = "_abcfx_signature"
_MISSING = inspect.Parameter.empty
_IDENTITY: Any = object.__eq__


@dataclass(frozen=True)
class Slot:
    """An input that stays free: the graph's placeholder of this name."""

    name: str


@dataclass(frozen=True)
class Constant:
    """An input whose value is part of the graph; a call with another value is refused."""

    value: Any


@dataclass(frozen=True)
class Argument:
    """How one argument of the model becomes placeholders: its pytree structure and what each leaf is."""

    spec: trees.TreeSpec
    leaves: tuple[Slot | Constant, ...]

    def __reduce__(self) -> tuple[Any, ...]:
        # By an example of the structure: pytree's own objects warn when they are unpickled.
        return _argument_like, (trees.unflatten([0] * len(self.leaves), self.spec), self.leaves)


@dataclass(frozen=True, eq=False)
class Signature:
    """A model's call signature with its mapping to placeholders, and the structure of its output.

    Attributes:
        parameters: the signature of the model's forward.
        arguments: by name, how each becomes placeholders and constants.
        output: how the graph's flat outputs make the model's; None when they are the same.
        guards: a check of the placeholders' values on every call.
        positional: how many arguments were given by position.
        omitted: names of the arguments that were left at their defaults.
    """

    parameters: inspect.Signature
    arguments: Mapping[str, Argument]
    output: Part | None = None
    guards: Callable[[list[Any]], None] | None = None
    positional: int = 0
    omitted: frozenset[str] = frozenset()

    def __deepcopy__(self, memo: dict[int, Any]) -> Signature:
        return self  # nothing in it ever changes

    @property
    def slots(self) -> list[str]:
        """Names of the placeholders, in the order of the graph's inputs."""
        return [leaf.name for argument in self.arguments.values() for leaf in argument.leaves if isinstance(leaf, Slot)]

    @property
    def is_plain(self) -> bool:
        """Every argument is one required placeholder, so generated code needs no checks."""
        return self.guards is None and all(
            argument.leaves == (Slot(name),) and self.parameters.parameters[name].default is _MISSING
            for name, argument in self.arguments.items()
        )

    def flatten(self, values: Mapping[str, Any]) -> list[Any]:
        """The placeholders' values out of the arguments' values; refuses what the graph was not captured for."""
        flat: list[Any] = []
        for name, argument in self.arguments.items():
            value = values[name]
            if argument.spec.is_leaf():
                leaves = [value]
            else:
                leaves, spec = trees.flatten(value)
                if spec != argument.spec:
                    raise InvalidInputError(_refusal(name, f"a {argument.spec}", f"a {spec}"))
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

    def bind(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """The arguments of a call by name, defaults filled in."""
        bound = self.parameters.bind(*args, **kwargs)
        bound.apply_defaults()
        return dict(bound.arguments)

    def unflatten(self, outputs: Any) -> Any:
        """The model's own output structure out of the graph's flat outputs."""
        return outputs if self.output is None else put_together(self.output, outputs)

    def rebuild(self, slot_values: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments by name, with the given values in the slots and the constants in their places."""
        return {
            name: trees.unflatten(
                [slot_values[leaf.name] if isinstance(leaf, Slot) else leaf.value for leaf in argument.leaves],
                argument.spec,
            )
            for name, argument in self.arguments.items()
        }

    def with_output(self, output: Part) -> Signature:
        """The same inputs with outputs of the given structure."""
        return replace(self, output=output)

    def with_guards(self, guards: Callable[[list[Any]], None]) -> Signature:
        """The same with a check of the placeholders' values on every call."""
        return replace(self, guards=guards)

    def call(self, function: Callable[..., Any], values: Mapping[str, Any]) -> Any:
        """Call `function` in the way the example was: the same arguments by position, defaults left out.

        Decorated functions may treat an argument by keyword, or one left out, in their own way.
        """
        positional: list[Any] = []
        keywords: dict[str, Any] = {}
        for index, (name, parameter) in enumerate(self.parameters.parameters.items()):
            if parameter.kind is parameter.VAR_POSITIONAL:
                positional.extend(values[name])
            elif parameter.kind is parameter.VAR_KEYWORD:
                keywords.update(values[name])
            elif name in self.omitted:
                continue
            elif parameter.kind is parameter.KEYWORD_ONLY or index >= self.positional:
                keywords[name] = values[name]
            else:
                positional.append(values[name])
        return function(*positional, **keywords)


class SignatureCodeGen(fx.graph.CodeGen):
    """Generates `forward` with the model's own signature in front of a graph that takes flat tensors."""

    def __init__(self, signature: Signature) -> None:
        super().__init__()
        self.signature = signature

    def additional_globals(self) -> list[tuple[str, Any]]:
        return [(_GLOBAL, self.signature)]

    def gen_fn_def(self, free_vars: list[str], maybe_return_annotation: str, *, expanded_def: bool = False) -> str:
        header = f"def forward({_render(self.signature.parameters)}){maybe_return_annotation}:"
        names = [name.split(":")[0].split("=")[0].strip() for name in free_vars if name != "self"]
        if self.signature.is_plain:
            return header
        values = ", ".join(f"{name!r}: {name}" for name in self.signature.arguments)
        target = f"{', '.join(names)}, = " if names else ""
        return f"{header}\n    {target}{_GLOBAL}.flatten({{{values}}})"

    def generate_output(
        self, output_args: Any, *, descs: Any = None, repr_fn: Callable[[object], str] | None = None
    ) -> str:
        repr_fn = repr_fn or repr
        if self.signature.output is None:
            return f"return {repr_fn(output_args)}"
        return f"return {_GLOBAL}.unflatten({repr_fn(output_args)})"

    def process_inputs(self, *args: Any) -> Any:
        return self.signature.flatten(self.signature.bind(*args))

    def process_outputs(self, outputs: Any) -> Any:
        return self.signature.unflatten(outputs)


def call_signature(graph: fx.Graph) -> Signature:
    """Return the signature under which a captured graph is called."""
    code = graph._codegen  # fx has `set_codegen` and no way to ask for it
    assert isinstance(code, SignatureCodeGen)
    return code.signature


def signature_of(
    model: nn.Module, args: tuple[Any, ...] | None, kwargs: dict[str, Any] | None, *, opaque: bool = False
) -> tuple[Signature, dict[str, Any]]:
    """The model's signature with tensors as slots and all else as constants, and the example value of every slot.

    Without examples, arguments that have a default are constants with that default. With `opaque`, leaves of
    classes unknown to pytree (a graph batch, say) are slots too, which only symbolic tracing can use.
    """
    parameters = inspect.signature(model.forward)
    parameters = parameters.replace(
        parameters=[p.replace(annotation=_MISSING) for p in parameters.parameters.values()],
        return_annotation=_MISSING,
    )
    if args is None and kwargs is None:
        values: dict[str, Any] = {}
    else:
        try:
            values = parameters.bind(*(args or ()), **(kwargs or {})).arguments
        except TypeError as error:
            raise InvalidInputError(f"The example inputs do not fit {type(model).__name__}.forward: {error}") from None
    arguments: dict[str, Argument] = {}
    examples: dict[str, Any] = {}
    taken = set(parameters.parameters)
    for name, parameter in parameters.parameters.items():
        free = name not in values and parameter.default is _MISSING
        if free and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            arguments[name] = Argument(trees.structure(0), (Slot(name),))
            continue
        arguments[name] = _argument(name, parameter, values, opaque, taken, examples)
    omitted = {name for name, p in parameters.parameters.items() if name not in values and p.default is not _MISSING}
    positional = len(args) if args is not None else len(parameters.parameters)
    return Signature(parameters, arguments, positional=positional, omitted=frozenset(omitted)), examples


def _argument_like(example: Any, leaves: tuple[Slot | Constant, ...]) -> Argument:
    return Argument(trees.structure(example), leaves)


def _argument(
    name: str,
    parameter: inspect.Parameter,
    values: Mapping[str, Any],
    opaque: bool,
    taken: set[str],
    examples: dict[str, Any],
) -> Argument:
    empty = parameter.default
    if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
        empty = () if parameter.kind is parameter.VAR_POSITIONAL else {}
    leaves, spec = trees.flatten(values.get(name, empty))
    kinds: list[Slot | Constant] = []
    for number, leaf in enumerate(leaves):
        if not (isinstance(leaf, torch.Tensor) or (opaque and not _is_constant(leaf))):
            kinds.append(Constant(leaf))
            continue
        slot = name if spec.is_leaf() else _fresh(f"{name}_{number}", taken)
        examples[slot] = leaf
        kinds.append(Slot(slot))
    return Argument(spec, tuple(kinds))


def _fresh(name: str, taken: set[str]) -> str:
    while name in taken:
        name += "_"
    taken.add(name)
    return name


def _is_constant(value: Any) -> bool:
    plain = (bool, int, float, complex, str, bytes, type, torch.dtype, torch.device, torch.layout)
    return value is None or isinstance(value, plain) or type(value).__eq__ is not _IDENTITY


def _same(expected: Any, got: Any) -> bool:
    return expected is got or (type(expected) is type(got) and not isinstance(got, torch.Tensor) and expected == got)


def _describe(value: Any) -> str:
    return f"a tensor of shape {tuple(value.shape)}" if isinstance(value, torch.Tensor) else repr(value)


def _refusal(name: str, expected: str, got: str) -> str:
    return (
        f"forward({name}=...): this graph was captured with {expected} and was called with {got}. "
        f"To use it so, capture again with example inputs that have the new value, "
        f"e.g. abcfx.transform(model, args, {{{name!r}: ...}})."
    )


def _render(signature: inspect.Signature) -> str:
    """The signature as source text; defaults that have no faithful text are taken from the signature object."""
    parts = ["self"]
    seen_star = False
    parameters = list(signature.parameters.values())
    for index, parameter in enumerate(parameters):
        if parameter.kind is parameter.KEYWORD_ONLY and not seen_star:
            parts.append("*")
            seen_star = True
        star = ""
        if parameter.kind is parameter.VAR_POSITIONAL:
            star, seen_star = "*", True
        elif parameter.kind is parameter.VAR_KEYWORD:
            star = "**"
        text = star + parameter.name
        if parameter.default is not _MISSING:
            text += f" = {_default_text(parameter)}"
        parts.append(text)
        following = parameters[index + 1] if index + 1 < len(parameters) else None
        if parameter.kind is parameter.POSITIONAL_ONLY and (
            following is None or following.kind is not parameter.POSITIONAL_ONLY
        ):
            parts.append("/")
    return ", ".join(parts)


def _default_text(parameter: inspect.Parameter) -> str:
    default = parameter.default
    if isinstance(default, (bool, int, str, type(None))) or (type(default) is float and math.isfinite(default)):
        return repr(default)
    return f"{_GLOBAL}.parameters.parameters[{parameter.name!r}].default"

"""Generate the `forward` of a captured graph with the model's own signature in front of flat tensors."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence

from torch import fx
from torch.fx.node import Argument

from abcfx.capture.signature import Signature

# Name of the signature in generated code.
_GLOBAL = "_abcfx_signature"


class SignatureCodeGen(fx.graph.CodeGen):
    """A code generator for fx graphs that writes a `forward` with the model's own arguments and output.

    The graph itself takes a flat list of tensors and returns a flat list; the generated code converts both.
    """

    def __init__(self, signature: Signature) -> None:
        super().__init__()
        self.signature = signature

    def additional_globals(self) -> list[tuple[str, object]]:
        """Return the names that the generated code uses: the signature object."""
        return [(_GLOBAL, self.signature)]

    def gen_fn_def(self, free_vars: list[str], maybe_return_annotation: str, *, expanded_def: bool = False) -> str:
        """Return the first lines of the generated `forward`: the model's signature, and a line that flattens it.

        Args:
            free_vars: names of the graph's flat inputs, as fx writes them, with annotations.
            maybe_return_annotation: text of the return annotation, or "".
            expanded_def: not used here.
        """
        header = f"def forward({_render(self.signature.parameters)}){maybe_return_annotation}:"
        names = [name.split(":")[0].split("=")[0].strip() for name in free_vars if name != "self"]
        if self.signature.is_plain:
            return header
        values = ", ".join(f"{name!r}: {name}" for name in self.signature.arguments)
        target = f"{', '.join(names)}, = " if names else ""
        return f"{header}\n    {target}{_GLOBAL}.flatten({{{values}}})"

    def generate_output(
        self,
        output_args: Argument,
        *,
        descs: Sequence[str] | None = None,
        repr_fn: Callable[[object], str] | None = None,
    ) -> str:
        """Return the last line of the generated `forward`, which builds the model's output from flat tensors.

        Args:
            output_args: what the graph returns: nodes, in a tuple.
            descs: not used here.
            repr_fn: writes that as code; `repr` if None.
        """
        outputs = (repr_fn or repr)(output_args)
        return f"return {outputs}" if self.signature.output is None else f"return {_GLOBAL}.unflatten({outputs})"

    def process_inputs(self, *args: object) -> list[object]:
        """Return the flat tensors for positional arguments of the model, as fx interpreters ask for them."""
        return self.signature.flatten(self.signature.bind(*args))

    def process_outputs(self, outputs: Sequence[object]) -> object:
        """Return the model's output, built from the graph's flat outputs, as fx interpreters ask for it."""
        return self.signature.unflatten(outputs)


def signature_of_graph(graph: fx.Graph) -> Signature | None:
    """Return the model's call signature that a captured graph holds; None for a graph that abcfx did not capture."""
    codegen = graph._codegen  # fx has `set_codegen` and no public way to ask for it
    return codegen.signature if isinstance(codegen, SignatureCodeGen) else None


def call_signature(graph: fx.Graph) -> Signature:
    """Return the model's call signature that a captured graph holds; other graphs are an error."""
    signature = signature_of_graph(graph)
    assert signature is not None
    return signature


def _render(signature: inspect.Signature) -> str:
    """Write a call signature as source text, such as "self, x, mask = None".

    Defaults that have no faithful text are looked up in the signature object when the code runs.
    """
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
        if parameter.default is not inspect.Parameter.empty:
            text += f" = {_default_text(parameter)}"
        parts.append(text)
        following = parameters[index + 1] if index + 1 < len(parameters) else None
        if parameter.kind is parameter.POSITIONAL_ONLY and (
            following is None or following.kind is not parameter.POSITIONAL_ONLY
        ):
            parts.append("/")
    return ", ".join(parts)


def _default_text(parameter: inspect.Parameter) -> str:
    """Return source text for the default of an argument: its literal, or an expression that looks the object up."""
    default = parameter.default
    if isinstance(default, (bool, int, str, type(None))) or (type(default) is float and math.isfinite(default)):
        return repr(default)
    return f"{_GLOBAL}.parameters.parameters[{parameter.name!r}].default"

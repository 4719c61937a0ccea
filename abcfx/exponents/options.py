"""`Parametrization`: which exponents a user wants, from a named table, assumed alignments, attention and depth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from abcfx.dag.layer_dag import LayerDag
from abcfx.errors import InvalidInputError
from abcfx.exponents.depth import DepthTable
from abcfx.exponents.fixed import ParameterExponents
from abcfx.support.arguments import flag
from abcfx.support.choices import choose
from abcfx.support.numbers import check_number
from abcfx.support.patterns import match_patterns
from abcfx.theory.parametrizations import Alignments, PresetAlignments, alignment_preset, named_exponents

_TERMS = Alignments._fields
AttentionScaling = Literal["scale", "keep"]
AlignmentOption = str | Sequence[float] | Mapping[str, str | Sequence[float]]


@dataclass(frozen=True)
class Parametrization:
    """Which exponents of width and depth a model gets. `transform` also takes the table's name alone.

    Args:
        table: named table of the exponents a and b: "mup", "sp", "ntk" or "mfp".
        alignment: how far updates line up with activations: "full", "no", "worst", a tuple (alpha, omega, u) of
            exponents of fan_in, or a dict of glob pattern on parameter names to one of these.
        attention: "scale" multiplies attention logits by what is missing for 1 / head_dim where head_dim grows, and for
            a scale that stays where head_dim stays; "keep" leaves them as they are, and the report says what that
            costs.
        depth: what to do where the base has fewer blocks: "completep" or "mup" scale residual branches, rates and eps
            with the ratio of depths; "none" leaves them alone.

        wider_base: allow a base that is wider than the model, to carry numbers down to a smaller width. Without it such
            a base is an error, since mostly the two are swapped.

    Raises:
        InvalidInputError: a value is not one of these.

    >>> Parametrization(alignment="no").table
    'mup'
    """

    table: str = "mup"
    alignment: AlignmentOption = "full"
    attention: AttentionScaling = "scale"
    depth: DepthTable = "none"
    wider_base: bool = False

    def __post_init__(self) -> None:
        """Check every option, and bring names such as "muP" into their usual spelling."""
        named_exponents(self.table)
        object.__setattr__(self, "attention", choose("attention", self.attention, get_args(AttentionScaling)))
        object.__setattr__(self, "depth", choose("depth", self.depth, get_args(DepthTable)))
        values = self.alignment.values() if isinstance(self.alignment, Mapping) else [self.alignment]
        flag("wider_base", self.wider_base)
        for value in values:
            _for_all_layers(value)

    @classmethod
    def of(cls, option: Parametrization | str) -> Parametrization:
        """Return `option` if it is a Parametrization; make one with default settings if it is the name of a table."""
        return option if isinstance(option, Parametrization) else cls(table=option)

    def check_base(self, width_ratio: float) -> None:
        """Raise an error for a base (instance to compare with) wider than the model, unless `wider_base` allows it.

        Args:
            width_ratio: width of the model over that of the base.

        Raises:
            InvalidInputError: the ratio is below 1.
        """
        if width_ratio < 1 and not self.wider_base:
            raise InvalidInputError(
                f"base is wider than the model (m = {width_ratio:.4g}): are the two swapped?\n"
                f"  expected: base at the small width where the hyperparameters were tuned.\n"
                f"  To fix: transform(large, base=small); or, to carry numbers down to a smaller width, "
                f"parametrization=Parametrization(wider_base=True)."
            )

    def alignments(self, dag: LayerDag, decided: Mapping[str, ParameterExponents]) -> dict[str, Alignments]:
        """Return for each layer node the exponents with which dW x (alpha), W dx (omega) and dW dx (u) add up.

        They are 1/2 if the terms of these sums have random signs, and 1 if they agree.

        Args:
            dag: the layer DAG, a graph of the model's layers and other ops.
            decided: the role of each parameter.

        Raises:
            InvalidInputError: a glob pattern matches no weight.
        """
        layers = dag.layers()
        if isinstance(self.alignment, Mapping):
            matched = match_patterns("alignment", self.alignment, [layer.parameter for _, layer in layers])
            of_parameter = {name: _for_all_layers(value) for name, value in matched.items()}
            default = alignment_preset("full")
        else:
            of_parameter, default = {}, _for_all_layers(self.alignment)
        return {
            node: decided[layer.parameter].alignments(of_parameter.get(layer.parameter, default))
            for node, layer in layers
        }


def _for_all_layers(value: str | Sequence[float]) -> PresetAlignments:
    """Return the alignments of each kind of layer that a value of the option `alignment` stands for.

    An alignment (alpha, omega or u) is the exponent with which a product of updates or weights and inputs sums up: from
    1/2 to 1.
    """
    if isinstance(value, str):
        return alignment_preset(value)
    if not isinstance(value, Sequence) or len(value) != 3:
        raise InvalidInputError(f"alignment={value!r}: expected a preset or three numbers (alpha, omega, u).")
    given = Alignments(
        *(check_number(f"alignment {name}", x, at_least=0, at_most=1) for name, x in zip(_TERMS, value, strict=True))
    )
    return PresetAlignments.same(given)

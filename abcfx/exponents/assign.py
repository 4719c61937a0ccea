"""The exponents that are fixed before the LP: role, multiplier a of every use and init b of every parameter.

What a named table means on a DAG: embedding-like a + b = 0, hidden a + b = e_in / 2, graph outputs and softmax routers
as the table says (muP: e_in); an inner layer whose output does not grow keeps the hidden rule; vectors a = b = 0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from abcfx.dag.generators import generators
from abcfx.dag.layer_dag import LayerDag
from abcfx.errors import InvalidInputError
from abcfx.pairing.widths import WidthGrowth
from abcfx.rules import Kind, Layer, Number
from abcfx.rules.extents import Extent
from abcfx.rules.kinds import Norm, NumberFactor
from abcfx.support.patterns import match_patterns
from abcfx.theory.optimizers import OptimizerFamily
from abcfx.theory.parametrizations import MATRIX_ROLES, ROLES, named_exponents

TOLERANCE = 1e-6
GIVEN_ROLE = "as given in `roles`"
GivenExponents = Mapping[str, Sequence[float]] | Sequence[Sequence[float]]


@dataclass(frozen=True)
class ParameterExponents:
    """What is decided for one parameter. `a` by node of each use; `c` only when the user fixed it."""

    role: str
    why: str
    e_in: float
    e_out: float
    a: dict[str, float]
    b: float
    c: float | None = None
    void: bool = False
    learns: bool = True
    is_bias: bool = False
    own: float = 0.0  # the model itself multiplies this layer with m^-own
    normalised: bool = False  # forward divides it by a norm: its size has no effect, and its init stays


class FixedExponents:
    """Everything that the kinds of the DAG ask for while they write their bounds (see `abcfx.rules.Known`)."""

    def __init__(
        self,
        dag: LayerDag,
        growth: WidthGrowth,
        parameters: Mapping[str, ParameterExponents],
        families: Mapping[str, OptimizerFamily],
        vectors_change: bool = False,
        attention: Mapping[str, float] | None = None,
    ) -> None:
        self.dag, self.widths, self.parameters, self.families = dag, growth, parameters, families
        self.attention = dict(attention or {})
        self._a = self.attention | {node: a for p in parameters.values() for node, a in p.a.items()}
        self._sizes: dict[str, float] = {}
        self._changing: set[str] = set()
        for node in dag.order:
            kind = dag.kind(node)
            self._sizes[node] = kind.size(node, self)
            moved = any(self.changes(source) for source in kind.sources)
            learns = not kind.sources and vectors_change and not isinstance(kind, Layer)
            if moved or learns or (isinstance(kind, Layer) and self.learns(kind.parameter)):
                self._changing.add(node)

    def growth(self, *dims: Extent) -> float:
        return self.widths.dims(*dims)

    def number(self, number: Number) -> float:
        return self.widths.number(number)

    def size(self, node: str | None) -> float:
        return 0.0 if node is None else self._sizes[node]

    def changes(self, node: str | None) -> bool:
        return node in self._changing

    def a(self, node: str) -> float:
        kind = self.dag.kind(node)
        own = self.number(kind.factor) if isinstance(kind, Layer) else 0.0
        return self._a.get(node, 0.0) - own

    def b(self, parameter: str) -> float:
        return self.parameters[parameter].b

    def learns(self, parameter: str) -> bool:
        return self.parameters[parameter].learns

    def family(self, parameter: str) -> OptimizerFamily:
        return self.families[parameter]

    def fan_in_growth(self) -> dict[str, float | None]:
        """For each parameter, e_in of the layer that it is the weight or the bias of: what its own init may follow."""
        found: dict[str, float | None] = dict.fromkeys(self.parameters)
        for _, layer in self.dag.layers():
            for node in layer.vectors:
                found[node] = self.growth(*layer.fan_in)
            found[layer.parameter] = self.growth(*layer.fan_in)
        return found

    def with_vectors(self) -> FixedExponents:
        """The same, with biases, gains and other vectors counted among what changes."""
        return FixedExponents(self.dag, self.widths, self.parameters, self.families, True, self.attention)

    def with_attention(self, attention: Mapping[str, float]) -> FixedExponents:
        """The same, with logits (product nodes) multiplied by m^-exponent."""
        return FixedExponents(self.dag, self.widths, self.parameters, self.families, attention=attention)


def assign_exponents(
    dag: LayerDag,
    growth: WidthGrowth,
    parameters: Mapping[str, torch.nn.Parameter],
    parametrization: str,
    roles: Mapping[str, str] | None = None,
    exponents: GivenExponents | None = None,
) -> dict[str, ParameterExponents]:
    """Role, a and b of every parameter of a model, with the user's overrides. Raises InvalidInputError.

    Args:
        dag: the layer DAG.
        growth: growth exponents of dims.
        parameters: the model's parameters by name.
        parametrization: name of a table.
        roles: pattern -> role.
        exponents: pattern -> (a, b) or (a, b, c), or such tuples in the order in which the layers run.
    """
    table = named_exponents(parametrization)
    uses = dag.uses()
    role_of = match_patterns("roles", roles or {}, parameters)
    for name, role in role_of.items():
        if role not in ROLES:
            raise InvalidInputError(f"roles: {name!r} was given the role {role!r}; expected one of {', '.join(ROLES)}.")
    given = _given_exponents(exponents, dag, parameters)
    decided = {}
    for name, parameter in parameters.items():
        nodes = uses.get(name, [])
        layers = [node for node in nodes if isinstance(dag.kind(node), Layer)]
        if not nodes:
            found = ParameterExponents("plain", "not used by the traced graph", 0.0, 0.0, {}, 0.0, learns=False)
        elif not layers:
            is_bias = any(
                isinstance(kind := dag.kind(n), Layer) and nodes[0] in kind.vectors for n in dag.successors(nodes[0])
            )
            found = replace(_vector(name, parameter, growth), is_bias=is_bias)
        else:
            found = _matrix(dag, growth, table, name, layers, role_of.get(name))
        if name in given:
            found = _overridden(found, name, given[name], dag)
        decided[name] = replace(found, learns=False) if not parameter.requires_grad else found
    return decided


def _vector(name: str, parameter: torch.nn.Parameter, growth: WidthGrowth) -> ParameterExponents:
    e = sum(growth.parameter(name, tuple(parameter.shape)))
    if e:
        return ParameterExponents("vector", "added or multiplied entrywise along a dim that grows", 0.0, e, {}, 0.0)
    return ParameterExponents("scalar", "added or multiplied entrywise; no dim of it grows", 0.0, 0.0, {}, 0.0)


def _matrix(
    dag: LayerDag,
    growth: WidthGrowth,
    table: Mapping[str, tuple[float, float]],
    name: str,
    nodes: list[str],
    wanted: str | None,
) -> ParameterExponents:
    """One b for the parameter, an a for each use: the first use decides b, the others keep their a + b."""
    sides, found, sums, factors = [], [], [], []
    for node in nodes:
        kind = dag.kind(node)
        assert isinstance(kind, Layer)
        e_in, e_out = growth.dims(*kind.fan_in), growth.dims(*kind.fan_out)
        role, why = _role(dag, node, e_in, e_out) if wanted is None else (wanted, GIVEN_ROLE)
        sides.append((e_in, e_out))
        found.append((role, why))
        row = _table_row(table, role, e_in, e_out)
        own = 0.0 if role == "plain" else _own_factor(dag, growth, node, role)
        factors.append(own)
        row = (0.0, sum(row) - own) if own else row  # it takes the place of a
        if role == "readout" and isinstance(source := _input(dag, kind), Norm):
            row = (row[0] - growth.dims(*source.summed) / 2, row[1])  # what an L2 norm returns is ~ d^-1/2 already
        # rows of norm O(1): its entries are ~ fan_in^-1/2 whatever its init
        sums.append((sum(row) - e_in / 2, e_in / 2) if kind.normalised and role != "plain" else row)
    lead = next((i for i, (role, _) in enumerate(found) if role == "embedding"), 0)
    (role, why), (e_in, e_out), (a_lead, b) = found[lead], sides[lead], sums[lead]
    a = {node: sum(sums[i]) - b for i, node in enumerate(nodes)}
    a[nodes[lead]] = a_lead
    tied_roles = [r for i, (r, _) in enumerate(found) if i != lead and r != role]
    for i, node in enumerate(nodes):
        contracts = i != lead and role == "embedding" and sides[i][0] > 0
        if tied_roles and (found[i][0] == "readout" or contracts):
            a[node] = sides[i][0] - factors[i] - b  # one c for a table and what contracts it: a + b = e_in
    if own := factors[lead]:
        why += f"; the model's own factor m^{-own:g} takes the place of its multiplier"
    if tied_roles:
        why += f"; tied, also used as {' and '.join(dict.fromkeys(tied_roles))}"
        e_in = max(side[0] for side in sides)
    normalised = any(isinstance(kind := dag.kind(node), Layer) and kind.normalised for node in nodes)
    if normalised:
        why += "; forward divides it by a norm of itself, so that its own init stays"
    inner = any(isinstance(kind := dag.kind(node), Layer) and kind.inner for node in nodes)
    if inner and a_lead:
        why += "; no scale node can be placed inside the op, so init and rate carry its multiplier"
    void = len(nodes) == 1 and role != "plain" and dag.is_void(nodes[0])
    if void or inner:  # a is a gauge; before a norm the one with a = 0 keeps the norm's eps negligible
        a, b = dict.fromkeys(nodes, 0.0), a_lead + b
    learns = role != "plain"
    return ParameterExponents(role, why, e_in, e_out, a, b, None, void, learns, own=own, normalised=normalised)


def _input(dag: LayerDag, layer: Layer) -> Kind | None:
    """What a layer's input is made by."""
    (source,) = layer.inputs
    return None if source is None else dag.kind(source)


def _own_factor(dag: LayerDag, growth: WidthGrowth, node: str, role: str) -> float:
    """x, where the model itself multiplies a layer with numbers that are ~ m^-x: its weight, or a readout's input
    (T5's d^-1/2), or what comes out of a table (sqrt(d)) or of a readout. Of a hidden layer: the input of an inner
    bottleneck (a router over d), and what a norm divides out again; its others are its architecture."""
    layer = dag.kind(node)
    assert isinstance(layer, Layer)
    numbers, before, at = [layer.factor], layer.inputs[0], node
    if role == "readout" or (role == "hidden" and not growth.dims(*layer.fan_out)):
        on_input = []
        while before is not None and isinstance(kind := dag.kind(before), NumberFactor):
            if role == "hidden" and len(dag.successors(before)) > 1:
                break
            on_input.append(kind.factor)
            before = kind.input
        source = None if before is None else dag.kind(before)
        is_table = isinstance(source, Layer) and not growth.dims(*source.fan_in)
        is_read_once = before is not None and len(dag.successors(before)) == 1
        # or what makes up for an L2 norm, whose entries are ~ 1/sqrt(d)
        is_norms = isinstance(source, Norm) and growth.dims(*source.summed) > 0
        if not is_norms and not (is_table and is_read_once):  # else it is that table's own
            numbers += on_input
    takes_output = role in ("embedding", "readout") or dag.is_void(node, through_scales=True)
    while takes_output and at not in dag.outputs:
        after = dag.successors(at)
        kind = dag.kind(after[0])
        if len(after) > 1 or not isinstance(kind, NumberFactor):
            break
        numbers.append(kind.factor)
        at = after[0]
    return -sum(growth.number(number) for number in numbers) + 0.0


def _role(dag: LayerDag, node: str, e_in: float, e_out: float) -> tuple[str, str]:
    if e_in and e_out:
        return "hidden", "fan_in and fan_out grow"
    if e_out:
        return "embedding", "fan_out grows, fan_in does not"
    if not e_in:
        return "scalar", "neither fan_in nor fan_out grows"
    if dag.feeds_output(node):
        return "readout", "fan_in grows, fan_out does not, and it feeds an output of the model"
    if node in generators(dag):
        return "readout", "fan_in grows, fan_out does not, and it weighs the streams it is computed from (a generator)"
    if dag.feeds_softmax(node):
        return "readout", "fan_in grows, fan_out does not, and it feeds a softmax (a router)"
    return "hidden", "an inner bottleneck: fan_in grows, fan_out does not, other layers follow"


def _table_row(table: Mapping[str, tuple[float, float]], role: str, e_in: float, e_out: float) -> tuple[float, float]:
    if role == "plain":
        return 0.0, e_in / 2  # its own fan-in init, no multiplier
    if role not in MATRIX_ROLES:
        return 0.0, 0.0
    a, b = table[role]
    e = e_out if role == "embedding" else e_in
    return a * e + 0.0, b * e + 0.0


def _given_exponents(
    exponents: GivenExponents | None, dag: LayerDag, parameters: Mapping[str, torch.nn.Parameter]
) -> dict[str, tuple[float, ...]]:
    if exponents is None:
        return {}
    if isinstance(exponents, Mapping):
        matched = match_patterns("exponents", exponents, parameters)
        return {name: tuple(float(x) for x in values) for name, values in matched.items()}
    names = list(dict.fromkeys(kind.parameter for _, kind in dag.layers()))
    if len(exponents) != len(names):
        raise InvalidInputError(
            f"exponents: {len(exponents)} tuples were given for {len(names)} layers.\n"
            f"  Layers, in the order in which they run: {', '.join(n.removesuffix('.weight') for n in names)}."
        )
    return {name: tuple(float(x) for x in values) for name, values in zip(names, exponents, strict=True)}


def _overridden(found: ParameterExponents, name: str, values: tuple[float, ...], dag: LayerDag) -> ParameterExponents:
    if len(values) not in (2, 3) or any(x != x or abs(x) == float("inf") for x in values):
        raise InvalidInputError(f"exponents: {name!r} was given {values}; expected finite (a, b) or (a, b, c).")
    a, b, c = (*values, None)[:3]
    assert a is not None and b is not None
    total = a + b
    _check_size(found, name, total)
    return replace(found, a=dict.fromkeys(found.a, a), b=b, c=c, void=False)


def _check_size(found: ParameterExponents, name: str, total: float) -> None:
    """Stability at init: what a + b must be for the layer's output to be O(1), unless a norm follows."""
    if found.void or found.role not in MATRIX_ROLES:
        return
    expected = (0.0 if found.role == "embedding" else found.e_in / 2) - found.own
    wrong = total < expected - TOLERANCE if found.role == "readout" else abs(total - expected) > TOLERANCE
    if wrong:
        at_least = "at least " if found.role == "readout" else ""
        raise InvalidInputError(
            f"exponents: a + b of {name!r} ({found.role}) is {total:g}; its output is stable at init only if a + b is "
            f"{at_least}{expected:g}.\n  To fix: exponents={{{name!r}: (a, {expected:g} - a)}}"
        )

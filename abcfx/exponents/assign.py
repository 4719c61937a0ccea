"""Assigns role, multiplier exponent a and init exponent b to every parameter, before the linear program.

On a DAG a named table means: a + b = 0 for embedding-like layers, a + b = e_in / 2 for hidden ones, and what the table
says for outputs of the graph and softmax routers (muP: e_in). A hidden layer whose fan_out grows less than its fan_in
lies between hidden layer and readout: muP's a + b = e_in / 2 + n / 2, where min(1, fan_out / fan_in) shrinks like m^-n.
That is the spectral condition (Yang, Simon, Bernstein 2023, arXiv 2310.17813). Vectors have a = b = 0, unless the model
itself multiplies one by what its init divides it by.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from abcfx.dag.layer_dag import LayerDag
from abcfx.exponents.fixed import ParameterExponents, SegmentExponents
from abcfx.exponents.given import GivenExponents, given_exponents, overridden
from abcfx.exponents.narrow import narrow_rows, narrowing_of
from abcfx.exponents.own_factors import numbers_on_output, own_exponent, own_factor
from abcfx.exponents.roles import RoleReason, WhyRole, role_of_layer
from abcfx.pairing.widths import WidthGrowth
from abcfx.rules import Kind, Layer
from abcfx.rules.extents import DimPart
from abcfx.rules.kinds import Norm
from abcfx.support.patterns import match_patterns
from abcfx.theory.parametrizations import MATRIX_ROLES, named_exponents

UNDONE = 0.05  # how far the exponent of a vector's own init may be from that of the number that undoes it
Table = Mapping[str, tuple[float, float]]


def assign_exponents(
    dag: LayerDag,
    growth: WidthGrowth,
    parameters: Mapping[str, torch.nn.Parameter],
    parametrization: str,
    roles: Mapping[str, str] | None = None,
    exponents: GivenExponents | None = None,
) -> dict[str, ParameterExponents]:
    """Assign to every parameter its role (embedding, hidden, ...), and exponents of its multiplier and init.

    The multiplier is m^-a, the init ~ m^-b, where m is the width ratio.

    Args:
        dag: the layer DAG, a graph of the model's layers and other ops.
        growth: growth exponent of each dim: 0 if it keeps its size in a wider model, 1 if it grows with the width.
        parameters: the model's parameters by name.
        parametrization: name of a table of (a, b), such as "mup".
        roles: glob pattern -> role, in place of what the graph says.
        exponents: glob pattern -> (a, b) or (a, b, c), or such tuples in the order in which the layers run.

    Returns:
        The exponents of each parameter; m is the width ratio.

    Raises:
        InvalidInputError: a pattern matches nothing, or given exponents make a layer's output unstable at init.
    """
    table, uses = named_exponents(parametrization), dag.uses()
    role_of = match_patterns("roles", roles or {}, parameters)
    given = given_exponents(exponents, dag, parameters)
    decided = {}
    for name, parameter in parameters.items():
        nodes = uses.get(name, [])
        layers = [node for node in nodes if isinstance(dag.kind(node), Layer)]
        if not nodes:
            found = ParameterExponents("plain", WhyRole(RoleReason.UNUSED), learns=False)
        elif not layers:
            found = _vector(dag, growth, name, parameter, nodes[0])
        else:
            found = _matrix([_use(dag, growth, parameters, table, node, role_of.get(name)) for node in layers], dag)
        if name in given:
            found = overridden(found, name, given[name])
        elif not parameter.requires_grad:
            found = without_multipliers(found)
        frozen = not parameter.requires_grad
        grows = any(growth.parameter(name, tuple(parameter.shape)))
        decided[name] = replace(found, learns=found.learns and not frozen, frozen=frozen, grows=grows)
    return decided


def without_multipliers(found: ParameterExponents) -> ParameterExponents:
    """Return a parameter's exponents after its multiplier m^-a (m, the width ratio) has moved into its init m^-b.

    The a of its first use is added to b; all multipliers are then 1.
    """
    segments = {node: each._replace(b=each.b + found.a[node]) for node, each in found.segments.items()}
    b = found.b + next(iter(found.a.values()), 0.0)
    return replace(found, a=dict.fromkeys(found.a, 0.0), b=b, segments=segments)


def frozen_note(decided: Mapping[str, ParameterExponents]) -> tuple[str, ...]:
    """Return a note for the report that names the frozen parameters, whose values are kept; none if nothing is frozen.

    Args:
        decided: the exponents of every parameter by name.
    """
    frozen = [name for name, each in decided.items() if each.frozen]
    if not frozen:
        return ()
    given = [name for name in frozen if any(decided[name].a.values())]
    some = ", ".join(frozen[:3]) + (f" and {len(frozen) - 3} more" if len(frozen) > 3 else "")
    told = "with a multiplier only where `exponents` gives one" if given else "without multiplier"
    return (f"frozen (requires_grad is False), so kept as they are, {told}: {some}",)


def _vector(
    dag: LayerDag, growth: WidthGrowth, name: str, parameter: torch.nn.Parameter, node: str
) -> ParameterExponents:
    """Return the role (kind) and exponents of a bias, gain or other parameter that acts entry by entry.

    Its role is "vector" if a dim of it grows with width, else "scalar". If the model multiplies it by m^x (m, the width
    ratio) and draws it ~ m^-x, as nGPT does with x = 1/2, then b, the exponent of its init m^-b, is x.

    Args:
        dag: the layer DAG, a graph of the model's layers and other ops.
        growth: growth exponent of each dim: 0 if it keeps its size in a wider model, 1 if it grows with the width.
        name: name of the parameter.
        parameter: the tensor.
        node: its node in the DAG.
    """
    is_bias = any(isinstance(kind := dag.kind(n), Layer) and node in kind.vectors for n in dag.successors(node))
    e = sum(growth.parameter(name, tuple(parameter.shape)))
    role, reason = ("vector", RoleReason.GROWING_VECTOR) if e else ("scalar", RoleReason.FIXED_VECTOR)
    keeps_init = all(dag.node(n).is_parametric for n in dag.successors(node))  # a function of it is what acts
    x = sum(growth.number(number) for number in numbers_on_output(dag, node))
    b = x if x and keeps_init and _is_undone(growth, name, parameter, x) else 0.0
    return ParameterExponents(role, WhyRole(reason), e_out=e, b=b, is_bias=is_bias, keeps_init=keeps_init)


def _is_undone(growth: WidthGrowth, name: str, parameter: torch.Tensor, x: float) -> bool:
    """Whether the model's own init of a parameter is ~ m^-x (m, the width ratio).

    The values in the model are compared with those in the base, the same model at a smaller width.

    Args:
        growth: knows the base and the growth exponent of each dim.
        name: name of the parameter.
        parameter: the tensor in the model.
        x: the exponent.
    """
    drawn = own_exponent(growth, name, parameter)
    return drawn is not None and abs(drawn - x) < UNDONE


@dataclass(frozen=True)
class _Use:
    """One use of a weight in the model: its role (hidden, ...), multiplier and init if this were the only use.

    Attributes:
        node: the layer node of the DAG.
        layer: what it computes.
        role: the role of this use.
        reason: why it has this role.
        e_in: fan_in grows like m^e_in (m, the width ratio).
        e_out: fan_out grows like m^e_out.
        own: the model itself multiplies this use by m^-own.
        a: exponent of the multiplier m^-a.
        b: exponent of the init m^-b.
        narrowing: fan_out / fan_in, at most 1, shrinks like m^-narrowing; 0 unless it is an inner layer.
        rows: rows that are narrow layers beside others that grow, with x: their init is ~ m^-(b + x).
    """

    node: str
    layer: Layer
    role: str
    reason: RoleReason
    e_in: float
    e_out: float
    own: float
    a: float
    b: float
    narrowing: float
    rows: Mapping[DimPart, float]


def _use(
    dag: LayerDag,
    growth: WidthGrowth,
    parameters: Mapping[str, torch.Tensor],
    table: Table,
    node: str,
    wanted: str | None,
) -> _Use:
    """Find role (embedding, hidden, readout), multiplier and init of one use of a weight.

    Args:
        dag: the layer DAG, a graph of the model's layers and other ops.
        growth: growth exponent of each dim: 0 if it keeps its size in a wider model, 1 if it grows with the width.
        parameters: the model's parameters by name.
        table: exponents (a, b) of each role.
        node: the layer node that uses the weight.
        wanted: the role that the user gave, if any.
    """
    layer = dag.kind(node)
    assert isinstance(layer, Layer)
    e_in, e_out = growth.dims(*layer.fan_in), growth.dims(*layer.fan_out)
    if wanted != "plain" and layer.part is not None and not layer.part.grows:
        wanted = None  # a role that is given is that of the columns whose input grows
    role, reason = (wanted, RoleReason.GIVEN) if wanted else role_of_layer(dag, node, e_in, e_out)
    narrowing = narrowing_of(dag, growth, parameters, node, reason)
    a, b = _table_row(table, role, e_in, e_out, narrowing)
    drawn = own_exponent(growth, layer.parameter, parameters[layer.parameter])
    total, own = a + b, 0.0 if role == "plain" else own_factor(dag, growth, node, role, a + b, drawn)
    if own:  # the model's own factor takes the place of a
        a, b = 0.0, a + b - own
    if role == "readout" and isinstance(source := _input(dag, layer), Norm):
        a -= growth.dims(*source.summed) / 2  # what an L2 norm returns is ~ d^-1/2 already
    if layer.normalised and role != "plain":  # rows of norm O(1): entries are ~ fan_in^-1/2 whatever the init
        a, b = a + b - e_in / 2, e_in / 2
    rows = {} if layer.normalised else narrow_rows(dag, growth, parameters, node, reason)
    smaller = {part: x for part, e in rows.items() if (x := sum(_table_row(table, role, e_in, e_out, e)) - total)}
    return _Use(node, layer, role, reason, e_in, e_out, own, a, b, narrowing, smaller)


def _matrix(uses: list[_Use], dag: LayerDag) -> ParameterExponents:
    """Combine the uses of one weight (tied, or called twice): one init exponent b, a multiplier exponent a for each.

    The first embedding-like use (its fan_in does not grow with the width) decides b, or else the first use; the others
    keep their a + b.
    """
    if uses[0].layer.part is not None:
        return _segmented(uses)
    lead = next((use for use in uses if use.role == "embedding"), uses[0])
    a = {use.node: lead.a if use is lead else use.a + use.b - lead.b for use in uses}
    tied_roles = tuple(dict.fromkeys(use.role for use in uses if use is not lead and use.role != lead.role))
    for use in uses:
        contracts = use is not lead and lead.role == "embedding" and use.e_in > 0
        if tied_roles and (use.role == "readout" or contracts):
            a[use.node] = use.e_in - use.own - lead.b  # one c for a table and what contracts it: a + b = e_in
    normalised, inner = any(use.layer.normalised for use in uses), any(use.layer.inner for use in uses)
    beside = tuple(f"rows {part} are few, and start smaller by m^-{x:.3g}" for part, x in lead.rows.items())
    why = WhyRole(lead.reason, lead.own, tied_roles, normalised, inner and bool(lead.a), beside, lead.narrowing)
    b, void = lead.b, len(uses) == 1 and lead.role != "plain" and dag.is_void(lead.node)
    if void or inner:  # before a norm any a will do; a = 0 keeps the norm's eps negligible
        a, b = dict.fromkeys(a, 0.0), lead.a + lead.b
    e_in = max(use.e_in for use in uses) if tied_roles else lead.e_in
    return ParameterExponents(
        lead.role,
        why,
        e_in,
        lead.e_out,
        a,
        b,
        void=void,
        learns=lead.role != "plain",
        own=lead.own,
        narrowing=lead.narrowing,
        normalised=normalised,
        rows=lead.rows,
    )


def _segmented(uses: Sequence[_Use]) -> ParameterExponents:
    """Combine the layer nodes of a weight whose input is a concatenation: one for the columns that each part meets.

    Each keeps its own exponents a and b.

    Args:
        uses: these nodes. The first has an input that grows, and decides role and b of the weight.
    """
    lead, first = uses[0], {use.layer.part: use for use in reversed(uses)}
    own = {use.node: first[use.layer.part] for use in uses}
    fixed = [part for part in first if part is not None and not part.grows][::-1]
    beside = tuple(f"columns {part} meet an input that stays, and count as {first[part].role}" for part in fixed)
    return ParameterExponents(
        lead.role,
        WhyRole(lead.reason, lead.own, beside=beside, narrowing=lead.narrowing),
        lead.e_in,
        lead.e_out,
        {node: use.a for node, use in own.items()},
        lead.b,
        learns=lead.role != "plain",
        own=lead.own,
        narrowing=lead.narrowing,
        segments={node: SegmentExponents(use.role, use.b) for node, use in own.items()},
    )


def _input(dag: LayerDag, layer: Layer) -> Kind | None:
    """Return the kind of the DAG node that makes a layer's input (Norm, Merge, ...); None for an input of the model."""
    (source,) = layer.inputs
    return None if source is None else dag.kind(source)


def _table_row(table: Table, role: str, e_in: float, e_out: float, narrowing: float) -> tuple[float, float]:
    """Return exponents (a, b) of a layer (multiplier m^-a, init ~ m^-b) by its role, from a table.

    Those in the table are for a layer whose dims grow like m (the width ratio); they are multiplied by the growth
    exponent of the layer's own fan_in, or of its fan_out for an embedding.

    Args:
        table: (a, b) of each role.
        role: the role.
        e_in: growth exponent of fan_in.
        e_out: growth exponent of fan_out, which counts for embeddings.
        narrowing: growth exponent by which a hidden layer is a readout.
    """
    if role == "plain":
        return 0.0, e_in / 2  # its own fan-in init, no multiplier
    if role not in MATRIX_ROLES:
        return 0.0, 0.0
    a, b = table[role]
    e = e_out if role == "embedding" else e_in
    (hidden_a, hidden_b), (readout_a, readout_b) = table["hidden"], table["readout"]
    more_a, more_b = narrowing * (readout_a - hidden_a), narrowing * (readout_b - hidden_b)
    return a * e + more_a + 0.0, b * e + more_b + 0.0

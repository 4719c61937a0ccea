"""Rows of the linear program of a network: how much each output may change, and how large gradients may be.

Everett et al. 2024 (arXiv 2407.05872) for chains; docs/how_it_works.md for graphs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, TypeAlias, get_args

from abcfx.lp.names import RowKind, RowLabel, RowName
from abcfx.lp.network_nodes import Node
from abcfx.lp.rows import Row

NetworkOptimizer: TypeAlias = Literal["adam", "sgd"]
OPTIMIZERS: tuple[NetworkOptimizer, ...] = get_args(NetworkOptimizer)
ALPHA, U, OMEGA = RowLabel(RowKind.ALPHA), RowLabel(RowKind.U), RowLabel(RowKind.OMEGA)

Variable: TypeAlias = tuple[str, str]  # ("c" | "r" | "G", label of a node)


def write_rows(nodes: list[Node], successors: Mapping[str, Sequence[str]], optimizer: NetworkOptimizer) -> list[Row]:
    """Write the rows of the linear program of a network: each is one inequality that bounds the change r of an output.

    An output changes by ~ m**-r (m, the width ratio): r is the min of the terms dW x (row "alpha"), dW dx ("u") and W
    dx ("omega"). The rate is m**-c. Entries of an update are m**-(c + q), with q = 0 for Adam and, for SGD, the
    exponent of the weight's gradient: a + G, where the multiplier is m**-a and the gradient of the output ~ m**-G.

    Args:
        nodes: the nodes, each after its predecessors.
        successors: by label, the nodes that read each node.
        optimizer: "adam" or "sgd".
    """
    rows: list[Row] = []
    gradients = _write_gradient_rows(rows, nodes, successors) if optimizer == "sgd" else {}
    r = {node.label: ("r", node.label) for node in nodes}
    for _, label, a, b, has_weight, merge, inputs in nodes:
        out, update = r[label], (("c", label), *gradients.get(label, ()))
        size = 2 * a if optimizer == "sgd" else a
        if merge == "sum":
            repeated = tuple([r[other] for other, count in inputs.items() for _ in range(count)])
            incoming = [("", repeated)] if inputs else []
        else:
            incoming = [(other if len(inputs) > 1 else "", (r[other],)) for other in inputs]
        if has_weight and inputs:
            rows.append(Row(RowName(label, ALPHA), out, update, size, "alpha", label))
            for other, levels in incoming:
                u, omega = (RowLabel(RowKind.U, other), RowLabel(RowKind.OMEGA, other)) if other else (U, OMEGA)
                rows.append(Row(RowName(label, u), out, update + levels, size, "u", label))
                rows.append(Row(RowName(label, omega), out, levels, a + b, "omega", label))
        elif has_weight:
            rows.append(Row(RowName(label, RowLabel(RowKind.UPDATE)), out, update, size))
        elif inputs:
            names = [RowName(label, RowLabel(RowKind.INPUT, other)) for other, _ in incoming]
            rows += [Row(name, out, levels, a) for name, (_, levels) in zip(names, incoming, strict=True)]
        else:
            rows.append(Row(RowName(label, RowLabel(RowKind.SOURCE)), out, (), a))
    return rows


def _write_gradient_rows(
    rows: list[Row], nodes: list[Node], successors: Mapping[str, Sequence[str]]
) -> dict[str, tuple[Variable, ...]]:
    """Add the rows (inequalities) about gradients, which SGD needs; return by node what sums to its exponent G.

    A gradient is ~ m**-G (m, the width ratio). With a, b, c the exponents of multiplier, init and learning rate, G is
    the min of (a + b, 2a + c) over the readouts that a node reaches. Nodes that reach the same readouts by the same way
    share one variable; a readout has none.

    Args:
        rows: the rows so far, to which this adds.
        nodes: the nodes, each after its predecessors.
        successors: by label, the nodes that read each node.
    """
    passed_back: dict[str, Variable] = {}
    gradients: dict[str, tuple[Variable, ...]] = {}
    for _, label, a, b, has_weight, _, inputs in reversed(nodes):
        level = ("G", label)
        arriving = list(dict.fromkeys(passed_back[other] for other in successors[label]))
        passed_back[label] = arriving[0] if len(arriving) == 1 else level
        if arriving:
            gradients[label] = (passed_back[label],)
        if len(arriving) > 1:
            names = [RowName(label, RowLabel(RowKind.GRADIENT, other[1])) for other in arriving]
            rows += [Row(name, level, (other,), 0.0) for name, other in zip(names, arriving, strict=True)]
        elif not arriving and inputs:
            rows.append(Row(RowName(label, RowLabel(RowKind.INITIAL_GRADIENT)), level, (), a + b))
            if has_weight:
                rows.append(Row(RowName(label, RowLabel(RowKind.UPDATED_GRADIENT)), level, (("c", label),), 2 * a))
    return gradients

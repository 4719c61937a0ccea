"""`find_c` and `find_c_dag` reproduce the reference data: optima, infeasible networks and invalid input."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import networkx as nx
import pytest
from oracles import network_optimum

from abcfx.errors import InfeasibleError, InvalidInputError
from abcfx.lp.networks import ChainSolution, GraphSolution, find_c, find_c_dag

DATA = Path(__file__).parents[1] / "data"


def load(name: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads((DATA / name).read_text())
    return rows


CHAINS, DAGS = load("find_c_chain.json"), load("find_c_dag.json")
ERRORS = {"infeasible": InfeasibleError, "invalid": InvalidInputError}


def numbers(values: list[Any]) -> list[float]:
    return [float(value) for value in values]


def graph_of(row: dict[str, Any]) -> nx.DiGraph:
    """Build the graph of a row; a link that the row declares missing stays missing."""
    graph = nx.DiGraph()
    for node in row["nodes"]:
        graph.add_node(node["name"], **{key: value for key, value in node.items() if key != "name"})
    for node in row["nodes"]:
        for predecessor, count in Counter(node["predecessors"]).items():
            if predecessor in graph and [predecessor, node["name"]] != row.get("missing_successor_link"):
                graph.add_edge(predecessor, node["name"], multiplicity=count)
    return graph


def solve(row: dict[str, Any]) -> ChainSolution | GraphSolution:
    options: dict[str, Any] = {"optimizer": row["optimizer"], "feature_learning": row["feature_learning"]}
    if row["kind"] == "dag":
        return find_c_dag(graph_of(row), **options)
    return find_c(*(numbers(row[key]) for key in ("a", "b", "alpha", "omega", "u")), **options)


def by_name(row: dict[str, Any], values: list[Any]) -> dict[Any, Any]:
    names = range(len(values)) if row["kind"] == "chain" else [node["name"] for node in row["nodes"]]
    return {name: value for name, value in zip(names, values, strict=True) if value is not None}


def check_optimum(row: dict[str, Any], solution: ChainSolution | GraphSolution) -> None:
    expected = row["expected"]
    c: dict[Any, float] = dict(enumerate(solution.c)) if isinstance(solution.c, list) else solution.c
    r: dict[Any, float] = dict(enumerate(solution.r)) if isinstance(solution.r, list) else solution.r
    assert solution.objective == pytest.approx(expected["objective"], rel=1e-9, abs=1e-9)
    assert sum(c.values()) == pytest.approx(solution.objective, rel=1e-12, abs=1e-12)
    assert min(r.values()) >= -1e-9
    assert c.keys() == by_name(row, expected["c"]).keys()
    if expected["c_unique"]:
        assert c == pytest.approx(by_name(row, expected["c"]), abs=1e-6)
    else:
        least, most = by_name(row, expected["c_min"]), by_name(row, expected["c_max"])
        assert all(least.get(key, -1e9) - 1e-6 <= value <= most.get(key, 1e9) + 1e-6 for key, value in c.items())


@pytest.mark.parametrize("row", [*CHAINS, *DAGS], ids=lambda row: row["id"])
def test_reference(row: dict[str, Any]) -> None:
    status = row["expected"]["status"]
    if row.get("gradient_from_unreachable_sinks") and status != "invalid":
        check_against_oracle(row)
    elif status == "optimal":
        check_optimum(row, solve(row))
    else:
        with pytest.raises(ERRORS[status]):
            solve(row)


def check_against_oracle(row: dict[str, Any]) -> None:
    """The solver that made the data took gradients from readouts that a node does not reach; the oracle does not."""
    optimum = network_optimum(
        graph_of(row), row["optimizer"], row["feature_learning"], relaxed=not row["feature_learning"]
    )
    if optimum is None:
        with pytest.raises(InfeasibleError):
            solve(row)
        return
    solution = solve(row)
    assert solution.objective == pytest.approx(optimum, rel=1e-9, abs=1e-9)
    assert min(solution.r.values() if isinstance(solution.r, dict) else solution.r) >= -1e-9
    if row["expected"]["status"] == "optimal":  # fewer readouts leave G larger, so no c has to be higher
        assert solution.objective <= row["expected"]["objective"] + 1e-9


def test_every_kind_of_row_is_there() -> None:
    assert (len(CHAINS), len(DAGS)) == (206, 216)
    assert {row["expected"]["status"] for row in [*CHAINS, *DAGS]} == {"optimal", "infeasible", "invalid"}
    assert sum(row.get("gradient_from_unreachable_sinks", False) for row in DAGS) == 70

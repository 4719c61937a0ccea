"""`find_c` and `find_c_dag` give known answers, agree with oracles, and do not depend on order or history."""

from __future__ import annotations

import copy
import gc
import json
import math
import pickle
import random
from pathlib import Path
from typing import Any, Literal, cast

import networkx as nx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from oracles import FULL, MUP, adam_chain, mup_graph, network_optimum

from abcfx.errors import InfeasibleError, InvalidInputError
from abcfx.lp.names import RowKind, RowLabel, RowName
from abcfx.lp.network_rows import NetworkOptimizer
from abcfx.lp.networks import GraphSolution, find_c, find_c_dag
from abcfx.verification.networks import Chain, chain_graph, random_chain, random_graph, shuffled
from abcfx.verification.recursion import network_levels

TABLES = json.loads((Path(__file__).parents[1] / "data" / "named_parametrizations.json").read_text())
Alignment = Literal["alpha", "omega", "u"]
NAMES: tuple[Alignment, ...] = ("alpha", "omega", "u")


def optimum(graph: nx.DiGraph, **options: Any) -> GraphSolution | None:
    try:
        return find_c_dag(graph, **options)
    except InfeasibleError:
        return None


class TestKnownAnswers:
    def test_mup(self) -> None:
        solution = find_c(**MUP, **FULL)
        assert solution.c == [0.5, 1.0, 1.0, 0.5]
        assert solution.r == [0.0] * 4
        assert solution.objective == 3.0
        c, r = solution
        assert (c, r) == (solution.c, solution.r)

    def test_mup_without_alignment(self) -> None:
        assert find_c([-0.5, 0.0, 0.5], [0.5, 0.5, 0.5], 0.5, 0.5, 0.5).c == [0.5, 0.5, 0.0]

    def test_mup_with_sgd(self) -> None:
        assert find_c(**MUP, **FULL, optimizer="sgd").c == [0.0] * 4

    def test_numbers_may_be_lists_arrays_or_one_for_all(self) -> None:
        lists = find_c(**MUP, alpha=[1.0] * 4, omega=[0.5] * 4, u=[1] * 4)
        a, b, ones, halves = (cast("list[float]", np.array(x)) for x in (MUP["a"], MUP["b"], [1.0] * 4, [0.5] * 4))
        arrays = find_c(a, b, ones, halves, float(np.float32(1)))
        assert lists == arrays == find_c(**MUP, **FULL)

    @pytest.mark.parametrize("hidden", [2, 7])
    @pytest.mark.parametrize(
        "row",
        [row for row in TABLES["rows"] if row["optimizer"] in ("adam", "sgd") and row["alignment"] != "zero"],
        ids=lambda row: f"{row['parametrization']}-{row['optimizer']}-{row['alignment']}",
    )
    def test_named_tables(self, row: dict[str, Any], hidden: int) -> None:
        def deep(values: list[float]) -> list[float]:
            return [values[0], *[values[1]] * hidden, values[2]]

        preset = TABLES["alignment_presets"][row["alignment"]]
        omega = deep([preset["omega"], preset["omega"], preset["omega_readout"]])
        solution = find_c(
            deep(row["a"]), deep(row["b"]), preset["alpha"], omega, preset["u"], optimizer=row["optimizer"]
        )
        assert solution.c == pytest.approx(deep(row["c"]), abs=1e-12)

    def test_two_readouts_on_one_trunk(self) -> None:
        """theory.md, section 4: with SGD the gradient of the SP readout dictates, with Adam nothing is coupled."""
        graph = nx.DiGraph([("e", "h"), ("h", "mup"), ("h", "sp")])
        exponents = {"e": (0.0, 0.0), "h": (0.0, 0.5), "mup": (0.5, 0.5), "sp": (0.0, 0.5)}
        for node, (a, b) in exponents.items():
            graph.nodes[node].update(a=a, b=b, **FULL)
        assert find_c_dag(graph, optimizer="sgd").c == {"e": -0.5, "h": 0.5, "mup": 0.0, "sp": 1.0}
        assert find_c_dag(graph).c == {"e": 0.0, "h": 1.0, "mup": 0.5, "sp": 1.0}

    def test_a_readout_that_is_not_reached_gives_no_gradient(self) -> None:
        """Two chains in one graph: each has the exponents it has alone."""
        sp = nx.relabel_nodes(mup_graph(e__a=0.0, e__b=0.0, o__a=0.0, o__b=0.5), lambda node: f"{node}2")
        both = nx.union(mup_graph(), sp)
        alone = find_c_dag(mup_graph(), optimizer="sgd").c | find_c_dag(sp, optimizer="sgd").c
        assert find_c_dag(both, optimizer="sgd").c == alone

    def test_an_input_used_twice(self) -> None:
        graph = mup_graph(o__merge="sum", o__b=0.0, o__omega=0.7)
        multigraph = nx.MultiDiGraph(graph)
        multigraph.add_edge("h", "o")
        graph.edges["h", "o"]["multiplicity"] = 2
        assert find_c_dag(graph).c == find_c_dag(multigraph).c == pytest.approx({"e": 0.6, "h": 1.1, "o": 0.5})

    def test_defaults_of_attributes(self) -> None:
        """has_weight is True and merge "min"; a source needs no alignments, a node without weight only its a."""
        graph = mup_graph(e__alpha=None, e__omega=None, e__u=None)
        assert find_c_dag(graph).c == {"e": 0.5, "h": 1.0, "o": 0.5}
        graph.add_node("act", a=0.0, has_weight=False)
        graph.add_edges_from([("h", "act"), ("act", "o")])
        assert find_c_dag(graph).c == {"e": 0.5, "h": 1.0, "o": 0.5}

    def test_binding_constraints_and_their_prices(self) -> None:
        solution = find_c([0.0] * 4, [0.0, 0.5, 0.5, 0.5], 1.0, [0.5, 0.5, 0.6, 0.75], 1.0)
        assert solution.c == pytest.approx([0.35, 1.35, 1.25, 1.0])
        assert solution.binding[0] == (RowName("layer 0", RowLabel(RowKind.UPDATE)),)
        assert solution.binding[1] == (RowName("layer 1", RowLabel(RowKind.ALPHA)),)
        # the readout's omega holds up three rates, that of layer 2 two
        prices = {str(name): price for name, price in solution.shadow_prices.items()}
        assert prices["layer 3: omega"] == pytest.approx(-3)
        assert prices["layer 2: omega"] == pytest.approx(-2)
        assert prices["layer 3: r >= 0"] == pytest.approx(4)

    @pytest.mark.parametrize("branches", [{"h": 3, "x": 3}, {"h": 2, "x": 3}, {"h": 3, "x": 2}])
    def test_feature_learning_through_a_merge(self, branches: dict[str, int]) -> None:
        """Raising either input of the merge would let the branches behind it be lower, but one input must stay at 0."""
        graph = mup_graph()
        graph.remove_edge("h", "o")
        graph.add_node("x", a=0.0, b=0.5, **FULL)
        graph.add_node("out", a=0.5, b=0.5, **FULL)
        graph.add_nodes_from(["merge", "end"], a=0.0, has_weight=False)
        graph.add_edges_from([("e", "x"), ("h", "merge"), ("x", "merge"), ("merge", "o"), ("e", "end"), ("end", "out")])
        for tail, count in branches.items():
            for branch in range(count):
                graph.add_node((tail, branch), a=0.0, b=0.5, alpha=0.2, omega=0.5, u=1.0)
                graph.add_edges_from([(tail, (tail, branch)), ((tail, branch), "end")])
        free, learning = find_c_dag(graph), find_c_dag(graph, feature_learning=True)
        assert learning.objective == pytest.approx(network_optimum(with_all(graph), "adam", True), abs=1e-9)
        assert learning.objective == pytest.approx(free.objective + 0.8 * (min(branches.values()) - 1))
        assert learning.r["merge"] == 0.0
        assert sorted([learning.r["h"], learning.r["x"]]) == pytest.approx([0.0, 0.8])
        if branches["h"] != branches["x"]:
            assert learning.r[min(branches, key=lambda tail: branches[tail])] == 0.0

    @pytest.mark.parametrize("optimizer", ["adam", "sgd"])
    def test_rounding_does_not_grow_through_products(self, optimizer: NetworkOptimizer) -> None:
        """Each gate adds the r of its factors: an error of 1e-16 would be 1e+14 after 100 blocks."""
        graph = nx.DiGraph()
        graph.add_node("e", a=-0.5, b=0.5)
        rng, stream = random.Random(15), "e"
        for block in range(100):
            for name in ("up", "gate", "down"):
                alignments = {"alpha": rng.uniform(0.6, 1), "omega": 0.5, "u": rng.uniform(0.5, 1)}
                graph.add_node(f"{block}.{name}", a=rng.uniform(-0.5, 0.5), **alignments)
                graph.nodes[f"{block}.{name}"]["b"] = 0.5 - graph.nodes[f"{block}.{name}"]["a"]
            graph.add_node(f"{block}.product", a=0.0, has_weight=False, merge="sum")
            graph.add_node(f"{block}.add", a=0.0, has_weight=False)
            edges = [(stream, "up"), (stream, "gate"), (stream, "add")]
            graph.add_edges_from((tail, f"{block}.{head}") for tail, head in edges)
            edges = [("up", "product"), ("gate", "product"), ("product", "down"), ("down", "add")]
            graph.add_edges_from((f"{block}.{tail}", f"{block}.{head}") for tail, head in edges)
            stream = f"{block}.add"
        graph.add_node("o", a=0.5, b=0.5, **FULL)
        graph.add_edge(stream, "o")
        solution = find_c_dag(graph, optimizer=optimizer)
        assert set(solution.r.values()) == {0.0}
        assert solution.objective == pytest.approx(network_optimum(with_all(graph), optimizer, False, relaxed=True))


def with_all(graph: nx.DiGraph) -> nx.DiGraph:
    """Write out the default attributes, as the oracle needs them."""
    defaults = {"b": 0.0, "has_weight": True, "merge": "min", "alpha": 0.0, "omega": 0.0, "u": 0.0}
    graph = graph.copy()
    for values in graph.nodes.values():
        values.update({**defaults, **values})
    return graph


class TestOracles:
    def test_closed_form_of_adam_chains(self) -> None:
        rng = random.Random(0)
        for _ in range(300):
            chain = random_chain(rng, rng.randint(1, 60), -0.5, rng.choice([0.5, 1.0, 3.0]))
            solution = find_c(**chain)
            c, r = adam_chain(**chain)
            assert solution.c == pytest.approx(c, abs=1e-9)
            assert solution.r == pytest.approx(r, abs=1e-9)

    def test_adam_chains_take_no_pivot(self) -> None:
        """The basis that the solver starts from is optimal there, so a re-solve costs what the bookkeeping costs."""
        chain = random_chain(random.Random(16), 50)
        assert find_c(**chain).solver._program.solve().iterations == 0

    @pytest.mark.parametrize("optimizer", ["adam", "sgd"])
    def test_a_chain_is_a_graph(self, optimizer: NetworkOptimizer) -> None:
        rng = random.Random(1)
        for _ in range(100):
            chain = random_chain(rng, rng.randint(1, 30))
            one, other = find_c(**chain, optimizer=optimizer), find_c_dag(chain_graph(**chain), optimizer=optimizer)
            assert one.c == pytest.approx(list(other.c.values()), abs=1e-9)
            assert one.objective == pytest.approx(other.objective, abs=1e-9)

    @pytest.mark.parametrize("optimizer", ["adam", "sgd"])
    @pytest.mark.parametrize("feature_learning", [False, True])
    @pytest.mark.parametrize("ties", [False, True])
    def test_random_graphs(self, optimizer: NetworkOptimizer, feature_learning: bool, ties: bool) -> None:
        rng = random.Random(f"{optimizer} {feature_learning} {ties}")
        feasible = 0
        for _ in range(60):
            graph = random_graph(rng, rng.randint(1, 12), ties=ties, weights=rng.choice([0.3, 0.6, 0.9]))
            solution = optimum(graph, optimizer=optimizer, feature_learning=feature_learning)
            expected = network_optimum(graph, optimizer, feature_learning)
            assert (solution and solution.objective) == pytest.approx(expected, abs=1e-7)
            if solution:
                feasible += 1
                check(graph, optimizer, feature_learning, solution)
        assert feasible >= 10

    @pytest.mark.parametrize("optimizer", ["adam", "sgd"])
    def test_large_graphs(self, optimizer: NetworkOptimizer) -> None:
        rng = random.Random(2)
        for _ in range(4):
            graph = random_graph(rng, 150)
            for node, values in graph.nodes.items():  # feasible: a rate above everything, nothing else raises changes
                values["has_weight"] |= not graph.pred[node]
                values["a"] = values["a"] if values["has_weight"] else abs(values["a"])
                values["b"] = values["b"] if graph.pred[node] else -values["a"]
            expected = network_optimum(graph, optimizer, False, relaxed=True)
            solution = find_c_dag(graph, optimizer=optimizer)
            assert solution.objective == pytest.approx(expected, rel=1e-9)
            check(graph, optimizer, False, solution)

    @pytest.mark.parametrize("optimizer", ["adam", "sgd"])
    def test_no_single_c_can_be_lower(self, optimizer: NetworkOptimizer) -> None:
        rng = random.Random(3)
        for _ in range(40):
            graph = random_graph(rng, rng.randint(1, 25), ties=rng.random() < 0.5)
            solution = optimum(graph, optimizer=optimizer)
            if solution is None:
                continue
            for node in solution.c:
                lowered = network_levels(graph, optimizer, {**solution.c, node: solution.c[node] - 0.01})
                assert min(lowered.values()) < -1e-3
                assert solution.binding[node]


def check(graph: nx.DiGraph, optimizer: NetworkOptimizer, feature_learning: bool, solution: GraphSolution) -> None:
    assert solution.r == pytest.approx(network_levels(graph, optimizer, solution.c), abs=1e-9)
    assert min(solution.r.values()) >= -1e-9
    if feature_learning:
        inputs = [tail for tail, head in graph.edges if not graph.succ[head]]
        assert [solution.r[tail] for tail in inputs] == pytest.approx([0.0] * len(inputs), abs=1e-8)


class TestOneAnswer:
    @pytest.mark.parametrize("feature_learning", [False, True])
    def test_node_order_does_not_matter(self, feature_learning: bool) -> None:
        rng = random.Random(4)
        for _ in range(80):
            graph = random_graph(rng, rng.randint(2, 40), ties=True)
            options: dict[str, Any] = {"optimizer": rng.choice(["adam", "sgd"]), "feature_learning": feature_learning}
            one, other = optimum(graph, **options), optimum(shuffled(rng, graph), **options)
            assert (one and one.c) == pytest.approx(other and other.c, abs=1e-9)

    def test_bitwise_the_same_when_repeated(self) -> None:
        chain = random_chain(random.Random(5), 200)
        assert find_c(**chain, optimizer="sgd") == find_c(**chain, optimizer="sgd")

    @pytest.mark.parametrize("optimizer", ["adam", "sgd"])
    def test_a_walk_of_the_alignments_equals_cold_solves(self, optimizer: NetworkOptimizer) -> None:
        rng = random.Random(6)
        chain = random_chain(rng, 40, 0.3, 1.0)
        graph = random_graph(rng, 40)
        first = find_c(**chain, optimizer=optimizer), find_c_dag(graph, optimizer=optimizer)
        for _ in range(200):
            size = rng.choice([1e-3, 0.02, 0.3])
            for name in NAMES:
                chain[name] = [value + rng.uniform(-size, size) for value in chain[name]]
                for values in graph.nodes.values():
                    values[name] = min(1.2, values[name] + rng.uniform(-size, size))
            re_solved = first[0].resolve(*(chain[name] for name in NAMES))
            assert re_solved.c == pytest.approx(find_c(**chain, optimizer=optimizer).c, abs=1e-9)
            try:
                warm = first[1].resolve(*(dict(graph.nodes(data=name)) for name in NAMES))
            except InfeasibleError:
                assert optimum(graph, optimizer=optimizer) is None
            else:
                assert warm.c == pytest.approx(find_c_dag(graph, optimizer=optimizer).c, abs=1e-9)
                assert min(warm.r.values()) >= -1e-9

    @pytest.mark.parametrize("optimizer", ["adam", "sgd"])
    def test_small_changes_of_the_alignments_are_small_changes_of_c(self, optimizer: NetworkOptimizer) -> None:
        rng = random.Random(7)
        for _ in range(60):
            graph = random_graph(rng, rng.randint(2, 40), ties=rng.random() < 0.7)
            before = optimum(graph, optimizer=optimizer)
            for values in graph.nodes.values():
                values.update({name: values[name] + rng.uniform(-1e-4, 1e-4) for name in NAMES})
            after = optimum(graph, optimizer=optimizer)
            if before and after:
                assert after.c == pytest.approx(before.c, abs=0.01)

    def test_the_solver_stays_usable_after_errors(self) -> None:
        first = find_c(**MUP, **FULL, feature_learning=True)
        with pytest.raises(InfeasibleError):
            first.resolve(1.0, [0.5, 0.5, 0.5, 1.2], 1.0)
        with pytest.raises(InvalidInputError):
            first.resolve(math.nan, 0.5, 1.0)
        assert first.resolve(1.0, 0.5, 1.0) == first

    def test_the_garbage_collector_runs_as_before(self) -> None:
        for was_enabled in (True, False):
            (gc.enable if was_enabled else gc.disable)()
            try:
                find_c(**MUP, **FULL)
                with pytest.raises(InvalidInputError):
                    find_c(**MUP, **FULL, optimizer=cast("NetworkOptimizer", "lion"))
                assert gc.isenabled() is was_enabled
            finally:
                gc.enable()

    def test_solutions_are_copied_and_pickled(self) -> None:
        first = find_c(**MUP, **FULL)
        for other in (copy.deepcopy(first), pickle.loads(pickle.dumps(first))):
            assert other == first
            assert other.solver.solve() == first
            assert other.resolve(0.5, 0.5, 0.5).c == [0.5, 0.5, 0.5, 0.0]
        assert first.solver.solve() == first


exponent = st.floats(-0.5, 1.5, allow_nan=False)


@st.composite
def chains(draw: st.DrawFn) -> Chain:
    length = draw(st.integers(1, 8))
    a = draw(st.lists(exponent, min_size=length, max_size=length))
    b = [-a[0], *(0.5 - value for value in a[1:])]
    alpha, omega, u = (draw(st.lists(exponent, min_size=length, max_size=length)) for _ in range(3))
    return {"a": a, "b": b, "alpha": alpha, "omega": omega, "u": u}


class TestProperties:
    @given(chains(), st.sampled_from(["adam", "sgd"]))
    def test_optimum_of_chains(self, chain: Chain, optimizer: NetworkOptimizer) -> None:
        graph = with_all(chain_graph(**chain))
        # HiGHS lets each row be off by 1e-7.
        assert find_c(**chain, optimizer=optimizer).objective == pytest.approx(
            network_optimum(graph, optimizer, False, relaxed=True), abs=1e-6
        )

    @given(chains(), st.lists(exponent, min_size=8, max_size=8), st.sampled_from([("adam", 1), ("sgd", 2)]))
    def test_moving_a_multiplier_into_the_weights(
        self, chain: Chain, theta: list[float], optimizer: tuple[NetworkOptimizer, int]
    ) -> None:
        """theory.md, section 3: a + theta, b - theta is the same network with c - theta (Adam) or c - 2 theta (SGD)."""
        name, times = optimizer
        moved = chain.copy()
        moved["a"] = [a + shift for a, shift in zip(chain["a"], theta, strict=False)]
        moved["b"] = [b - shift for b, shift in zip(chain["b"], theta, strict=False)]
        before, after = find_c(**chain, optimizer=name), find_c(**moved, optimizer=name)
        assert after.c == pytest.approx(
            [c - times * shift for c, shift in zip(before.c, theta, strict=False)], abs=1e-6
        )

    @given(chains(), st.sampled_from(NAMES), st.integers(0, 7), st.floats(0, 1))
    def test_more_alignment_never_costs_less(self, chain: Chain, name: Alignment, layer: int, rise: float) -> None:
        more = chain.copy()
        more[name] = [value + rise * (i == layer) for i, value in enumerate(chain[name])]
        assert find_c(**more).objective >= find_c(**chain).objective - 1e-9

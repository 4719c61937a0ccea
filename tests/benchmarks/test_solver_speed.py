"""The time of the solver next to scipy's linprog, which is given its matrix and solves the first stage only.

Run `OMP_NUM_THREADS=1 pytest -n 0 tests/benchmarks/test_solver_speed.py --benchmark-enable -m ""` and read the medians;
only wrong answers fail.
"""

from __future__ import annotations

import random
from itertools import cycle
from typing import Any

import numpy as np
import pytest
from oracles import adam_chain
from pytest_benchmark.fixture import BenchmarkFixture
from scipy.optimize import linprog
from scipy.sparse import csr_matrix

from abcfx.lp.network_rows import NetworkOptimizer
from abcfx.lp.networks import find_c, find_c_dag
from abcfx.verification.networks import Chain, chain_graph, random_graph

KINDS = ("mup", "trades", "measured", "omega")
LARGE = pytest.param(10000, marks=pytest.mark.slow)


def chain(kind: str, length: int, seed: int = 0) -> Chain:
    """Full alignment, or random: u above alpha (`trades`), omega around a + b (`measured`), or above it (`omega`)."""
    rng = np.random.default_rng(seed)
    a, b = [-0.5, *[0.0] * (length - 2), 0.5], [0.5] * length
    ranges = {
        "mup": ((1, 1), (0.5, 0.5), (1, 1)),
        "trades": ((0.5, 0.7), (0.5, 0.5), (0.7, 1)),
        "measured": ((0.6, 1), (0.45, 0.55), (0.5, 1)),
        "omega": ((0.6, 1), (0.5, 1), (0.5, 1)),
    }[kind]
    alpha, omega, u = (rng.uniform(low, high, length).tolist() for low, high in ranges)
    return {"a": a, "b": b, "alpha": alpha, "omega": omega, "u": u}


@pytest.mark.parametrize("length", [100, 1000, LARGE])
@pytest.mark.parametrize("kind", KINDS)
def test_cold_chain(benchmark: BenchmarkFixture, kind: str, length: int) -> None:
    case = chain(kind, length)
    solution = benchmark(lambda: find_c(**case))
    assert solution.c == pytest.approx(adam_chain(**case)[0], abs=1e-9)


@pytest.mark.parametrize("length", [1000, LARGE])
def test_cold_chain_with_sgd(benchmark: BenchmarkFixture, length: int) -> None:
    solution = benchmark(lambda: find_c(**chain("measured", length), optimizer="sgd"))
    assert min(solution.r) >= -1e-9


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
@pytest.mark.parametrize("size", [1000, LARGE])
def test_cold_graph(benchmark: BenchmarkFixture, size: int, optimizer: NetworkOptimizer) -> None:
    graph = random_graph(random.Random(size), size)
    for node, values in graph.nodes.items():  # feasible: a rate above everything, nothing else raises changes
        values["has_weight"] |= not graph.pred[node]
        values["a"] = values["a"] if values["has_weight"] else abs(values["a"])
        values["b"] = values["b"] if graph.pred[node] else -values["a"]
    solution = benchmark(lambda: find_c_dag(graph, optimizer=optimizer))
    assert min(solution.r.values()) >= -1e-9


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
@pytest.mark.parametrize("kind", KINDS)
def test_re_solve(benchmark: BenchmarkFixture, kind: str, optimizer: NetworkOptimizer) -> None:
    """1,000 layers, every alignment moved by up to 0.02."""
    case = chain(kind, 1000)
    first = find_c(**case, optimizer=optimizer)
    rng = np.random.default_rng(1)
    alignments = (case["alpha"], case["omega"], case["u"])
    moved = [[(values + rng.uniform(-0.02, 0.02, 1000)).tolist() for values in alignments] for _ in range(20)]
    turns = cycle(moved)
    solution = benchmark(lambda: first.resolve(*next(turns)))
    assert min(solution.r) >= -1e-9
    if optimizer == "adam":
        solution = first.resolve(*moved[0])
        expected, _ = adam_chain(case["a"], case["b"], *moved[0])
        assert solution.c == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("length", [1000, LARGE])
@pytest.mark.parametrize("kind", KINDS)
def test_scipy_linprog(benchmark: BenchmarkFixture, kind: str, length: int) -> None:
    case = chain(kind, length)
    program = chain_program(**case)
    result = benchmark(lambda: linprog(method="highs", **program))
    assert result.fun == pytest.approx(find_c(**case).objective, rel=1e-9)


def chain_program(**case: Any) -> dict[str, Any]:
    """The LP of an Adam chain for linprog: columns c, r; rows r <= c + k (alpha), r <= c + r' + k (u), r <= r' + k."""
    a, b, alpha, omega, u = (np.array(case[name]) for name in ("a", "b", "alpha", "omega", "u"))
    n = len(a)
    layer = np.arange(1, n)
    rows = {"first": np.zeros(1, int), "alpha": layer, "u": n - 1 + layer, "omega": 2 * (n - 1) + layer}
    c, r = np.arange(n), n + np.arange(n)
    entries = [  # row, column, value
        (rows["first"], r[:1], 1), (rows["first"], c[:1], -1),
        (rows["alpha"], r[1:], 1), (rows["alpha"], c[1:], -1),
        (rows["u"], r[1:], 1), (rows["u"], c[1:], -1), (rows["u"], r[:-1], -1),
        (rows["omega"], r[1:], 1), (rows["omega"], r[:-1], -1),
    ]  # fmt: skip
    row, column = (np.concatenate([entry[k] for entry in entries]) for k in (0, 1))
    value = np.concatenate([np.full(len(entry[0]), float(entry[2])) for entry in entries])
    right = np.concatenate([a[:1], a[1:] - alpha[1:], a[1:] - u[1:], a[1:] + b[1:] - omega[1:]])
    bounds = np.array([(-np.inf, np.inf)] * n + [(0, np.inf)] * n)
    cost = np.r_[np.ones(n), np.zeros(n)]
    return {"c": cost, "A_ub": csr_matrix((value, (row, column))), "b_ub": right, "bounds": bounds}


def test_a_chain_is_written_alike() -> None:
    """The program for scipy is the one that the graph of the chain has."""
    case = chain("measured", 30)
    expected = find_c_dag(chain_graph(**case)).objective
    assert linprog(**chain_program(**case)).fun == pytest.approx(expected, rel=1e-9)

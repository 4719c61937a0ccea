"""Sections of `verify` on stability: constraints worked out by hand, rates that cannot be larger, random networks.

A layer's output changes by order n^-r during training (n: width); the network is stable if every r is at least 0.
"""

from __future__ import annotations

import random
from collections.abc import Hashable, Mapping
from typing import NamedTuple, TypeVar

import networkx as nx

from abcfx.errors import InfeasibleError
from abcfx.lp.network_rows import OPTIMIZERS, NetworkOptimizer
from abcfx.lp.networks import GraphSolution, find_c, find_c_dag
from abcfx.theory.parametrizations import MATRIX_ROLES
from abcfx.verification.evidence import Evidence, number
from abcfx.verification.networks import FULL, MUP_A, MUP_B, chain_graph, random_chain, random_graph, shuffled
from abcfx.verification.recursion import chain_levels, network_levels
from abcfx.verification.reference import reference_chains

STEP = 0.01  # by which a c is lowered: at width 1,000 a rate 7 % higher
TOLERANCE = 1e-7
TRIALS = 30  # of each kind of network and optimizer
LONGEST = 20  # layers of a random network
GRAPHS, LARGEST = 20, 12  # random graphs, and the nodes of the largest, whose every c is lowered

Name = TypeVar("Name", bound=Hashable)


def constraint_satisfaction() -> Evidence:
    """Check that solved learning rates make networks stable: section "Constraint satisfaction" of `verify`.

    r of each layer (its output changes by order n^-r, n: width) is worked out without the solver and must be at least
    0.

    Returns:
        Claims, each with whether it holds and the numbers that decided it, and tables of numbers.
    """
    evidence = Evidence()
    table = evidence.table("The r of a layer is the least of its terms (muP, full alignment, Adam)", "layer", "term",
                           "formula", "value")  # fmt: skip
    c = find_c(MUP_A, MUP_B, *FULL).c
    levels: list[float] = []
    for layer, name in enumerate(MATRIX_ROLES):
        terms = _terms(MUP_A[layer], MUP_B[layer], c[layer], levels[-1] if levels else None)
        for term in terms:
            table.add(name, *term)
        levels.append(min(value for _, _, value in terms))
    evidence.close("muP is tight: every r is 0", levels, [0.0] * 3)
    chains = reference_chains()
    lowest = min(min(chain_levels(chain, optimizer)) for _, optimizer, chain in chains)
    claim = f"every r of the {len(chains)} named chains is at least 0, by a recursion without the solver"
    evidence.check(claim, lowest >= -TOLERANCE, f"least r {number(lowest)}")
    off = 0.0
    for _, optimizer, chain in chains:
        pairs = zip(chain_levels(chain, optimizer), find_c(**chain, optimizer=optimizer).r, strict=True)
        off = max(off, *(abs(ours - theirs) for ours, theirs in pairs))
    evidence.check("find_c reports the r of the recursion", off <= TOLERANCE, f"off by {number(off)}")
    return evidence


def _terms(a: float, b: float, c: float, before: float | None) -> list[tuple[str, str, float]]:
    """Return the terms of r of a layer, trained by Adam with full alignment: (what changes it, formula, value) of each.

    The layer's output changes by order n^-r during training (n: width); r is the least of the values.

    Alignment is 1/2 if updates and inputs (the factors of dW x) are independent, and 1 if they line up fully.

    Args:
        a, b, c: exponents of the layer: multiplier n^-a, init n^-b, learning rate n^-c.
        before: r of the layer before it; None for the first layer.
    """
    if before is None:
        return [("update", f"a + c = {number(a)} + {number(c)}", a + c)]
    alpha, omega, u = FULL
    rate, init, r = a + c, a + b, number(before)
    return [
        ("dW x", f"a + c - alpha = {number(rate)} - {number(alpha)}", rate - alpha),
        ("dW dx", f"a + c + r - u = {number(rate)} + {r} - {number(u)}", rate + before - u),
        ("W dx", f"a + b + r - omega = {number(init)} + {r} - {number(omega)}", init + before - omega),
    ]


def optimality() -> Evidence:
    """Check that no solved learning rate could be larger: section "Optimality" of `verify`.

    Each exponent c of a rate n^-c (n: width) is lowered alone, and the network must then become unstable.

    Returns:
        Claims, each with whether it holds and the numbers that decided it, and tables of numbers.
    """
    evidence = Evidence()
    c = dict(enumerate(find_c(MUP_A, MUP_B, *FULL).c))
    graph = chain_graph(MUP_A, MUP_B, alpha=[1.0] * 3, omega=[0.5] * 3, u=[1.0] * 3)
    table = evidence.table(f"After lowering one c of muP by {STEP}", "lowered", *(f"r {x}" for x in MATRIX_ROLES), "")
    for layer, name in enumerate(MATRIX_ROLES):
        r = network_levels(graph, "adam", _lowered(c, layer))
        table.add(name, *(r[k] for k in range(3)), "breaks" if min(r.values()) < -TOLERANCE else "holds")
    loose: list[str] = []
    count = 0
    for name, optimizer, chain in reference_chains():
        found = dict(enumerate(find_c(**chain, optimizer=optimizer).c))
        count += len(found)
        loose += [f"{name} layer {layer}" for layer in _slack(chain_graph(**chain), optimizer, found)]
    evidence.no_exception(f"lowering any one c breaks a constraint, {count} rates of named chains", loose)
    rng, loose, count = random.Random(3), [], 0
    for trial in range(GRAPHS):
        optimizer = OPTIMIZERS[trial % 2]
        graph = random_graph(rng, rng.randint(3, LARGEST))
        solution = _solved(graph, optimizer)
        if solution is not None:
            count += len(solution.c)
            loose += [f"graph {trial} {node}" for node in _slack(graph, optimizer, solution.c)]
    claim = f"lowering any one c breaks a constraint, {count} rates of random graphs with forks, merges and products"
    evidence.no_exception(claim, loose, cases=count)
    return evidence


def randomized_stress() -> Evidence:
    """Solve random chains and graphs of layers, and check the results: section "Randomized stress" of `verify`.

    The solution must be stable by a computation without the solver, the same when it is solved again, and the same for
    the network written down in another order.

    Returns:
        Claims, each with whether it holds and the numbers that decided it, and tables of numbers.
    """
    evidence = Evidence()
    table = evidence.table("Random networks", "kind", "optimizer", "solved", "infeasible", "most layers", "least r",
                           "r off by")  # fmt: skip
    rng = random.Random(2024)
    negative: list[str] = []
    unlike: list[str] = []
    other: list[str] = []
    for kind in ("chain", "graph"):
        for optimizer in OPTIMIZERS:
            tries = [_stressed(rng, kind, optimizer, trial) for trial in range(TRIALS)]
            solved = [each for each in tries if each is not None]
            least, off = min(each.least for each in solved), max(each.off for each in solved)
            most = max(each.size for each in solved)
            table.add(kind, optimizer, len(solved), len(tries) - len(solved), most, least, off)
            evidence.check(
                f"at least half of the {kind}s have a solution, {optimizer}",
                len(solved) >= TRIALS // 2,
                f"{len(solved)} of {TRIALS}",
            )
            negative += [each.name for each in solved if each.least < -TOLERANCE]
            unlike += [each.name for each in solved if each.off > TOLERANCE]
            other += [each.name for each in solved if not each.same]
    evidence.no_exception("every r is at least 0", negative)
    evidence.no_exception("r agrees with a recursion that shares no code with the solver", unlike)
    evidence.no_exception("a second solve gives the same bits, and a network in another order the same c", other)
    return evidence


class _Stressed(NamedTuple):
    """A random network that was solved for its learning rates, and what was found.

    r of a node says that its output changes by order n^-r in training (n: width); it should be at least 0.

    Attributes:
        name: kind, optimizer and number of the network.
        size: number of its nodes.
        least: least r, computed without the solver.
        off: largest difference between this r and the solver's, over nodes.
        same: whether a second solve gives the same, and one of the network in another order the same learning rates.
    """

    name: str
    size: int
    least: float
    off: float
    same: bool


def _stressed(rng: random.Random, kind: str, optimizer: NetworkOptimizer, trial: int) -> _Stressed | None:
    """Draw a random network, solve it in several ways and compare; None where no learning rates make it stable.

    Args:
        rng: the generator.
        kind: "chain" or "graph".
        optimizer: "adam" or "sgd".
        trial: number of the network, for its name; every third graph has exponents in multiples of 1/4.
    """
    size = rng.randint(3, LONGEST)
    is_chain = kind == "chain"
    graph = chain_graph(**random_chain(rng, size)) if is_chain else random_graph(rng, size, ties=trial % 3 == 0)
    solution, again, turned = (_solved(each, optimizer) for each in (graph, graph, shuffled(rng, graph)))
    if solution is None or turned is None:
        return None
    r = network_levels(graph, optimizer, solution.c)
    off = max(abs(r[node] - solution.r[node]) for node in r)
    same = again == solution and all(abs(turned.c[node] - c) <= 1e-9 for node, c in solution.c.items())
    return _Stressed(f"{kind} {optimizer} {trial}", size, min(r.values()), off, same)


def _lowered(c: Mapping[Name, float], node: Name) -> dict[Name, float]:
    """Return the learning-rate exponents c with that of one node lowered by 0.01.

    Args:
        c: exponent of the rate n^-c (n: width) of each node; a lower one is a larger rate.
        node: the node.
    """
    return {**c, node: c[node] - STEP}


def _slack(graph: nx.DiGraph, optimizer: str, c: Mapping[Name, float]) -> list[Name]:
    """Return the layers whose learning rate could be larger: their exponent c lowered alone leaves the network stable.

    Args:
        graph: the network, as `find_c_dag` takes it.
        optimizer: "adam" or "sgd".
        c: exponent of the learning rate n^-c (n: width) of each layer.
    """
    return [node for node in c if min(network_levels(graph, optimizer, _lowered(c, node)).values()) >= -TOLERANCE]


def _solved(graph: nx.DiGraph, optimizer: NetworkOptimizer) -> GraphSolution | None:
    """Solve a network for its learning-rate exponents; None if no learning rates make it stable.

    Args:
        graph: the network, as `find_c_dag` takes it.
        optimizer: "adam" or "sgd".
    """
    try:
        return find_c_dag(graph, optimizer=optimizer)
    except InfeasibleError:
        return None

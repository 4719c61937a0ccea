"""Sections on the linear program: known answers, constraints, optimality, random networks, reference data."""

from __future__ import annotations

import random
from collections.abc import Hashable, Mapping
from typing import Any, NamedTuple

import networkx as nx

from abcfx.capture.options import Capture
from abcfx.errors import AbcfxError, InfeasibleError, InvalidInputError
from abcfx.exponents.options import Parametrization
from abcfx.lp.network_rows import OPTIMIZERS, NetworkOptimizer
from abcfx.lp.networks import ChainSolution, GraphSolution, find_c, find_c_dag
from abcfx.pipeline import transform
from abcfx.theory.parametrizations import MATRIX_ROLES, alignment_preset, named_exponents
from abcfx.verification.evidence import Evidence, number, numbers
from abcfx.verification.models import MLP, noise
from abcfx.verification.recursion import chain_graph, network_levels, random_chain, random_graph, shuffled
from abcfx.verification.reference import ALIGNMENTS, reference, solve_row

STEP = 0.01  # by which a c is lowered: at width 1,000 a rate 7 % higher
TOLERANCE = 1e-7
MUP_A, MUP_B, FULL = [-0.5, 0.0, 0.5], [0.5, 0.5, 0.5], (1.0, 0.5, 1.0)
TRIALS = 30  # of each kind and optimizer
LONGEST = 20
Network = dict[str, Any]


def _named_chain(row: Mapping[str, Any], hidden: int) -> Network:
    """Keyword arguments of `find_c` for a named parametrization with some hidden layers."""
    table, (inner, readout) = named_exponents(row["parametrization"]), alignment_preset(row["alignment"])
    roles = ["embedding", *["hidden"] * hidden, "readout"]
    alignments = [readout if role == "readout" else inner for role in roles]
    chain: Network = {"a": [table[role][0] for role in roles], "b": [table[role][1] for role in roles]}
    return chain | {name: [getattr(each, name) for each in alignments] for name in ALIGNMENTS}


def known_recovery(_: Any) -> Evidence:
    evidence = Evidence()
    caption = "Exponents c of embedding, hidden, readout of a model, by alignment preset"
    preset = evidence.table(caption, "parametrization", "optimizer", "full", "no", "worst")
    rows = reference()["named"]
    found: dict[tuple[str, str], dict[str, list[float]]] = {}
    chains_off, models_off = [], []
    for row in rows:
        name, optimizer, alignment = row["parametrization"], row["optimizer"], row["alignment"]
        expected = [row["c"][0], row["c"][1], row["c"][1], row["c"][2]]
        if optimizer in ("adam", "sgd"):
            c = find_c(**_named_chain(row, 2), optimizer=optimizer).c
            if not _same(c, expected):
                chains_off.append(f"{name} {optimizer} {alignment}: {numbers(c)}, expected {numbers(expected)}")
        model = MLP(32, hidden=2)
        result = transform(
            model,
            parametrization=Parametrization(table=name, alignment=alignment),
            capture=Capture(verify=False),
            optimizer=optimizer,
        )
        c = [result.spec[each]["c"] for each, _ in model.named_parameters()]
        if not _same(c, expected):
            models_off.append(f"{name} {optimizer} {alignment}: {numbers(c)}, expected {numbers(expected)}")
        found.setdefault((name, optimizer), {})[alignment] = [c[0], c[1], c[3]]
    for (name, optimizer), by_preset in found.items():
        preset.add(name, optimizer, *(numbers(by_preset[key]) for key in ("full", "no", "worst")))
    chains = sum(row["optimizer"] != "adafactor" for row in rows)
    _none(evidence, f"find_c returns the known c, {chains} chains of 4 layers", chains_off)
    _none(evidence, f"so does transform of an MLP of 4 layers, {len(rows)} settings", models_off)
    wrong = 0
    for a, b in (([0.0, 0.0, 0.5], MUP_B), (MUP_A, [0.5, 0.0, 0.5]), (MUP_A, [0.5, 0.5, -0.2])):
        try:
            find_c(a, b, *FULL)
        except InvalidInputError:
            wrong += 1
    evidence.check("(a, b) that blow up at init are refused", wrong == 3, f"{wrong} of 3")
    return evidence


def constraint_satisfaction(_: Any) -> Evidence:
    evidence = Evidence()
    a, b = MUP_A, MUP_B
    c = find_c(a, b, *FULL).c
    alpha, omega, u = FULL
    table = evidence.table("The r of a layer is the least of its terms (muP, full alignment, Adam)", "layer", "term",
                           "formula", "value")  # fmt: skip
    levels: list[float] = []
    for layer, name in enumerate(MATRIX_ROLES):
        terms = [("update", f"a + c = {number(a[0])} + {number(c[0])}", a[0] + c[0])]
        if layer:
            before, rate, passed = levels[-1], a[layer] + c[layer], a[layer] + b[layer]
            terms = [
                ("dW x", f"a + c - alpha = {number(rate)} - {number(alpha)}", rate - alpha),
                ("dW dx", f"a + c + r - u = {number(rate)} + {number(before)} - {number(u)}", rate + before - u),
                (
                    "W dx",
                    f"a + b + r - omega = {number(passed)} + {number(before)} - {number(omega)}",
                    passed + before - omega,
                ),
            ]
        for term in terms:
            table.add(name, *term)
        levels.append(min(value for _, _, value in terms))
    evidence.close("muP is tight: every r is 0", levels, [0.0] * 3)
    lowest = [min(_levels(_named_chain(row, 2), row["optimizer"])) for row in _chain_rows()]
    evidence.check(
        f"r >= 0 in all {len(lowest)} named chains, by a recursion of its own",
        min(lowest) >= -TOLERANCE,
        f"least r {number(min(lowest))}",
    )
    off = 0.0
    for row in _chain_rows():
        chain, optimizer = _named_chain(row, 2), row["optimizer"]
        pairs = zip(_levels(chain, optimizer), find_c(**chain, optimizer=optimizer).r, strict=True)
        off = max(off, *(abs(ours - theirs) for ours, theirs in pairs))
    evidence.check("the r that find_c reports are those of the recursion", off <= TOLERANCE, f"off by {number(off)}")
    return evidence


def optimality(_: Any) -> Evidence:
    evidence = Evidence()
    c = find_c(MUP_A, MUP_B, *FULL).c
    graph = chain_graph(MUP_A, MUP_B, alpha=[1.0] * 3, omega=[0.5] * 3, u=[1.0] * 3)
    table = evidence.table(f"After lowering one c of muP by {STEP}", "lowered", *(f"r {x}" for x in MATRIX_ROLES), "")
    for layer, name in enumerate(MATRIX_ROLES):
        r = network_levels(graph, "adam", _lowered(dict(enumerate(c)), layer))
        table.add(name, *(r[k] for k in range(3)), "breaks" if min(r.values()) < -TOLERANCE else "holds")
    loose: list[str] = []
    count = 0
    for row in _chain_rows():
        chain = _named_chain(row, 2)
        slack = _slack(chain_graph(**chain), row["optimizer"], find_c(**chain, optimizer=row["optimizer"]))
        count += 4
        loose += [f"{row['parametrization']} {row['optimizer']} {row['alignment']} layer {layer}" for layer in slack]
    _none(evidence, f"lowering any one c breaks a constraint: named chains, {count} rates", loose)
    rng, loose, count = random.Random(3), [], 0
    for trial in range(20):
        optimizer = OPTIMIZERS[trial % 2]
        graph = random_graph(rng, rng.randint(3, 12))
        solution = _solved(graph, optimizer)
        if solution is not None:
            count += len(solution.c)
            loose += [f"graph {trial} {node}" for node in _slack(graph, optimizer, solution)]
    _none(evidence, f"the same in random graphs with forks, merges and products, {count} rates", loose, at_least=count)
    return evidence


def randomized_stress(_: Any) -> Evidence:
    evidence = Evidence()
    table = evidence.table("Random networks", "kind", "optimizer", "solved", "infeasible", "most layers", "least r",
                           "r off by")  # fmt: skip
    rng = random.Random(2024)
    negative, unlike, other = [], [], []
    for kind in ("chain", "graph"):
        for optimizer in OPTIMIZERS:
            tries = [_stressed(rng, kind, optimizer, trial) for trial in range(TRIALS)]
            solved = [each for each in tries if each is not None]
            least, off = min(each.least for each in solved), max(each.off for each in solved)
            most = max(each.size for each in solved)
            table.add(kind, optimizer, len(solved), len(tries) - len(solved), most, least, off)
            evidence.check(f"{kind}s with {optimizer} were solved", len(solved) >= TRIALS // 2, str(len(solved)))
            negative += [each.name for each in solved if each.least < -TOLERANCE]
            unlike += [each.name for each in solved if each.off > TOLERANCE]
            other += [each.name for each in solved if not each.same]
    _none(evidence, "every r is at least 0", negative)
    _none(evidence, "r agrees with a recursion that shares no code with the solver", unlike)
    _none(evidence, "solved again: the same bits; written down in another order: the same c", other)
    return evidence


class _Stressed(NamedTuple):
    """`least`: of r, by recursion. `off`: from the solver's r. `same`: when solved again, and in another order."""

    name: str
    size: int
    least: float
    off: float
    same: bool


def _stressed(rng: random.Random, kind: str, optimizer: NetworkOptimizer, trial: int) -> _Stressed | None:
    """One random network; None where it is infeasible."""
    size = rng.randint(3, LONGEST)
    chain = kind == "chain"
    graph = chain_graph(**random_chain(rng, size)) if chain else random_graph(rng, size, ties=trial % 3 == 0)
    solution, again, turned = (_solved(each, optimizer) for each in (graph, graph, shuffled(rng, graph)))
    if solution is None or turned is None:
        return None
    r = network_levels(graph, optimizer, solution.c)
    off = max(abs(r[node] - solution.r[node]) for node in r)
    same = again == solution and all(abs(turned.c[node] - c) <= 1e-9 for node, c in solution.c.items())
    return _Stressed(f"{kind} {optimizer} {trial}", size, min(r.values()), off, same)


def cross_validation(_: Any) -> Evidence:
    evidence = Evidence()
    table = evidence.table("Reference rows", "kind", "optimizer", "optimal", "infeasible", "invalid", "agree",
                           "objective off by")  # fmt: skip
    counts: dict[tuple[str, str], dict[str, float]] = {}
    wrong = []
    for row in reference()["networks"]:
        status, off, c_agrees = _against_reference(row)
        count = counts.setdefault((row["kind"], row["optimizer"]), dict.fromkeys(("agree", "off"), 0.0))
        count[row["expected"]["status"]] = count.get(row["expected"]["status"], 0) + 1
        agrees = status == row["expected"]["status"] and off <= TOLERANCE and c_agrees
        count["agree"], count["off"] = count["agree"] + agrees, max(count["off"], off)
        if not agrees:
            wrong.append(f"{row['id']}: {status}, expected {row['expected']['status']}, objective off by {number(off)}")
    for (kind, optimizer), count in counts.items():
        statuses = (int(count.get(key, 0)) for key in ("optimal", "infeasible", "invalid"))
        table.add("graph" if kind == "dag" else kind, optimizer, *statuses, int(count["agree"]), count["off"])
    total = len(reference()["networks"])
    _none(
        evidence, f"all {total} rows agree in status, in the sum of c, and in c (or its range where not unique)", wrong
    )
    return evidence


def per_parameter(_: Any) -> Evidence:
    evidence = Evidence()
    a, b = [-0.5, 0.0, 0.0, 0.0, 0.5], [0.5] * 5
    own = {"h0": (0.8, 0.3, 0.6), "h1": FULL, "h2": (0.5, 0.2, 0.3)}
    layers = ["stem", *own, "head"]
    uniform = find_c(a, b, *FULL).c
    alignments = [FULL, *own.values(), FULL]
    varied = find_c(a, b, *zip(*alignments, strict=True)).c
    table = evidence.table("A chain of 5 layers, muP, Adam", "layer", "alpha, omega, u", "c at full alignment", "c")
    for each in zip(layers, map(numbers, alignments), uniform, varied, strict=True):
        table.add(*each)
    evidence.close("uniform alignment: one c for all hidden layers", uniform, [0.5, 1.0, 1.0, 1.0, 0.5])
    evidence.close("alignments of their own: each its own c", varied, [0.5, 0.8, 1.0, 0.5, 0.5])
    given = {f"hidden.{k}.weight": alignment for k, alignment in enumerate(own.values())}
    result = transform(MLP(64, hidden=3), noise(4, 16), parametrization=Parametrization(alignment=given), lr=1.0)
    names = [name for name, _ in result.module.named_parameters()]
    evidence.close("transform of a model gives the same c", [result.spec[name]["c"] for name in names], varied)
    rates = {group["param_names"][0]: group["lr"] for group in result.groups(per_parameter=True)}
    evidence.close("and its groups hold 64^-c", [rates[name] for name in names], [64.0**-c for c in varied])
    return evidence


def dag_against_chain(_: Any) -> Evidence:
    evidence = Evidence()
    rng = random.Random(11)
    table = evidence.table("The same chain for both fronts", "chains", "optimizer", "largest difference of c", "of r")
    for optimizer in OPTIMIZERS:
        c_off, r_off, count = 0.0, 0.0, 25
        for _ in range(count):
            chain: Network = dict(random_chain(rng, rng.randint(2, LONGEST), 0.3))
            ours, theirs = find_c(**chain, optimizer=optimizer), find_c_dag(chain_graph(**chain), optimizer=optimizer)
            c_off = max(c_off, *(abs(x - theirs.c[k]) for k, x in enumerate(ours.c)))
            r_off = max(r_off, *(abs(x - theirs.r[k]) for k, x in enumerate(ours.r)))
        table.add(count, optimizer, c_off, r_off)
        evidence.check(f"find_c_dag equals find_c, {optimizer}", max(c_off, r_off) <= TOLERANCE, number(c_off))
    graph = chain_graph(MUP_A, MUP_B, alpha=[1.0] * 3, omega=[0.5] * 3, u=[1.0] * 3)
    graph.add_node("add", a=0.0, has_weight=False)
    graph.remove_edge(1, 2)
    graph.add_edges_from([(0, "add"), (1, "add"), ("add", 2)])
    around = find_c_dag(graph)
    evidence.close("a skip around the hidden layer changes no c", [around.c[k] for k in range(3)], [0.5, 1.0, 0.5])
    result = transform(MLP(64, hidden=2), noise(4, 16))
    of_model = [result.spec[name]["c"] for name, _ in result.module.named_parameters()]
    of_chain = find_c([-0.5, 0.0, 0.0, 0.5], [0.5] * 4, *FULL).c
    evidence.close("the DAG traced from a model gives the c of its chain", of_model, of_chain)
    other = find_c(MUP_A, MUP_B, 0.5, 0.5, 0.5)
    evidence.close("a solver that is kept gives the c of a new one", other.resolve(*FULL).c, [0.5, 1.0, 0.5])
    return evidence


def _chain_rows() -> list[Mapping[str, Any]]:
    return [row for row in reference()["named"] if row["optimizer"] in ("adam", "sgd")]


def _same(found: Any, expected: Any) -> bool:
    return len(found) == len(expected) and all(abs(x - y) <= TOLERANCE for x, y in zip(found, expected, strict=True))


def _levels(chain: Network, optimizer: NetworkOptimizer) -> list[float]:
    c = find_c(**chain, optimizer=optimizer).c
    return list(network_levels(chain_graph(**chain), optimizer, dict(enumerate(c))).values())


def _lowered(c: Mapping[Any, float], node: Any) -> dict[Any, float]:
    return {**c, node: c[node] - STEP}


def _slack(graph: nx.DiGraph, optimizer: str, solution: ChainSolution | GraphSolution) -> list[Any]:
    """Layers whose c can be lowered and all r stay at 0 or more."""
    c = solution.c if isinstance(solution.c, dict) else dict(enumerate(solution.c))
    return [n for n in c if min(network_levels(graph, optimizer, _lowered(c, n)).values()) >= -TOLERANCE]


def _solved(graph: nx.DiGraph, optimizer: NetworkOptimizer) -> GraphSolution | None:
    try:
        return find_c_dag(graph, optimizer=optimizer)
    except InfeasibleError:
        return None


def _against_reference(row: Mapping[str, Any]) -> tuple[str, float, bool]:
    """(status found, difference of the sums of c, whether c agrees)."""
    expected = row["expected"]
    try:
        solution = solve_row(row)
    except AbcfxError as error:
        return "infeasible" if isinstance(error, InfeasibleError) else "invalid", 0.0, True
    if expected["status"] != "optimal":
        return "optimal", 0.0, False
    c: Mapping[Hashable, float] = dict(enumerate(solution.c)) if isinstance(solution.c, list) else solution.c
    names = list(c) if row["kind"] == "chain" else [node["name"] for node in row["nodes"]]
    low, high = expected.get("c", expected.get("c_min")), expected.get("c", expected.get("c_max"))
    agrees = all(
        (least is None or c[name] >= least - 1e-6) and (most is None or c[name] <= most + 1e-6)
        for name, least, most in zip(names, low, high, strict=True)
        if name in c
    )
    return "optimal", abs(solution.objective - expected["objective"]), agrees


def _none(evidence: Evidence, claim: str, wrong: list[str], at_least: int = 1) -> None:
    """A claim without exceptions; the first ones are named."""
    more = f" and {len(wrong) - 2} more" if len(wrong) > 2 else ""
    evidence.check(claim, not wrong and at_least > 0, "; ".join(wrong[:2]) + more if wrong else "all")

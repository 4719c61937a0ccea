"""Sections of `verify` that compare solved exponents with known ones, with another solver, and with each other.

Solved is c, the exponent of a layer's learning rate n^-c (n: width), for given exponents a of the multiplier n^-a, b of
the init n^-b, and alignment (how far updates and inputs line up).
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from abcfx.capture.options import Capture
from abcfx.errors import InvalidInputError
from abcfx.exponents.options import Parametrization
from abcfx.lp.network_rows import OPTIMIZERS
from abcfx.lp.networks import find_c, find_c_dag
from abcfx.pipeline import transform
from abcfx.verification.evidence import Evidence, number, numbers
from abcfx.verification.models import MLP, noise
from abcfx.verification.networks import FULL, MUP_A, MUP_B, chain_graph, named_chain, random_chain
from abcfx.verification.reference import NamedRow, compare_with_reference, reference
from abcfx.verification.stability import LONGEST, TOLERANCE

HIDDEN = 2
CHAINS = 25  # drawn for each optimizer


def check_known_exponents() -> Evidence:
    """Solve networks whose learning-rate exponents are known from papers: section "Known recovery" of `verify`.

    The learning-rate exponents c of muP, NTK, standard and mean-field parametrization must come out of `find_c` (for a
    chain of layers) and of `transform` (for an MLP), under several optimizers and alignments.

    Returns:
        Claims, each with whether it holds and the numbers that decided it, and tables of numbers.
    """
    evidence = Evidence()
    rows = reference()["named"]
    solved = [row for row in rows if row["optimizer"] in OPTIMIZERS]
    chains_off = [told for row in solved if (told := _difference_from_known(row, _c_of_chain(row)))]
    models_off: list[str] = []
    by_preset: dict[tuple[str, str], dict[str, list[float]]] = {}
    for row in rows:
        c = _c_of_model(row)
        if told := _difference_from_known(row, c):
            models_off.append(told)
        by_preset.setdefault((row["parametrization"], row["optimizer"]), {})[row["alignment"]] = [c[0], c[1], c[-1]]
    presets = ("full", "no", "worst")
    caption = "Exponents c of embedding, hidden, readout of a model, by alignment preset"
    table = evidence.table(caption, "parametrization", "optimizer", *presets)
    for (name, optimizer), found in by_preset.items():
        table.add(name, optimizer, *(numbers(found[preset]) for preset in presets))
    evidence.no_exception(f"find_c finds the known c, {len(solved)} chains of {HIDDEN + 2} layers", chains_off)
    evidence.no_exception(f"transform finds the known c, {len(rows)} MLPs of {HIDDEN + 2} layers", models_off)
    refused = 0
    for a, b in (([0.0, 0.0, 0.5], MUP_B), (MUP_A, [0.5, 0.0, 0.5]), (MUP_A, [0.5, 0.5, -0.2])):
        try:
            find_c(a, b, *FULL)
        except InvalidInputError:
            refused += 1
    evidence.check("a and b that blow up at init are refused", refused == 3, f"{refused} of 3")
    return evidence


def _c_of_chain(row: NamedRow) -> list[float]:
    """Solve a chain of layers with `find_c` and return the learning-rate exponent c of each layer.

    Alignment is 1/2 if updates and inputs (the factors of dW x) are independent, and 1 if they line up fully.

    Args:
        row: the parametrization, optimizer and alignment preset to solve for.
    """
    chain = named_chain(row["parametrization"], row["alignment"], HIDDEN)
    return find_c(**chain, optimizer="sgd" if row["optimizer"] == "sgd" else "adam").c


def _c_of_model(row: NamedRow) -> list[float]:
    """Transform an MLP and return the learning-rate exponent c of each of its layers.

    Alignment is 1/2 if updates and inputs (the factors of dW x) are independent, and 1 if they line up fully.

    Args:
        row: the parametrization, optimizer and alignment preset to transform with.
    """
    model = MLP(32, hidden=HIDDEN)
    result = transform(
        model,
        parametrization=Parametrization(table=row["parametrization"], alignment=row["alignment"]),
        capture=Capture(verify=False),
        optimizer=row["optimizer"],
    )
    return [result.plan[name].c for name, _ in model.named_parameters()]


def _difference_from_known(row: NamedRow, c: Sequence[float]) -> str:
    """Say how solved learning-rate exponents differ from the known ones; "" if they do not.

    Alignment is 1/2 if updates and inputs (the factors of dW x) are independent, and 1 if they line up fully.

    Args:
        row: parametrization, optimizer and alignment preset, with the known c of embedding, hidden layers and readout.
        c: the solved exponents, layer by layer.
    """
    embedding, hidden, readout = row["c"]
    expected = [embedding, *[hidden] * HIDDEN, readout]
    if all(abs(x - y) <= TOLERANCE for x, y in zip(c, expected, strict=True)):
        return ""
    name = f"{row['parametrization']} {row['optimizer']} {row['alignment']}"
    return f"{name}: {numbers(c)}, expected {numbers(expected)}"


def cross_validation() -> Evidence:
    """Solve networks that were also given to another solver, and compare: section "Cross-validation" of `verify`.

    Its answers (solvable or not, sum of the learning-rate exponents, each exponent) are packaged and must be met.

    Returns:
        Claims, each with whether it holds and the numbers that decided it, and tables of numbers.
    """
    evidence = Evidence()
    table = evidence.table("Reference rows", "kind", "optimizer", "optimal", "infeasible", "invalid", "agree",
                           "objective off by")  # fmt: skip
    wrong: list[str] = []
    rows = reference()["networks"]
    for kind, optimizer in dict.fromkeys((row["kind"], row["optimizer"]) for row in rows):
        mine = [row for row in rows if (row["kind"], row["optimizer"]) == (kind, optimizer)]
        statuses = [row["expected"]["status"] for row in mine]
        agree, most_off = 0, 0.0
        for row, expected in zip(mine, statuses, strict=True):
            status, off, c_agrees = compare_with_reference(row)
            most_off = max(most_off, off)
            if status == expected and off <= TOLERANCE and c_agrees:
                agree += 1
            else:
                wrong.append(f"{row['id']}: {status}, expected {expected}, objective off by {number(off)}")
        counts = (statuses.count(status) for status in ("optimal", "infeasible", "invalid"))
        table.add("graph" if kind == "dag" else kind, optimizer, *counts, agree, most_off)
    claim = (
        f"all {len(rows)} networks agree in status, in the sum of c, and in each c (in its range if it is not unique)"
    )
    evidence.no_exception(claim, wrong)
    return evidence


def per_parameter() -> Evidence:
    """Solve networks whose hidden layers have alignments of their own: section "Per-parameter solving" of `verify`.

    Layers whose updates line up less with their inputs must get other learning-rate exponents c, from `find_c` and from
    `transform` alike, and the optimizer groups the rates that follow.

    Alignment is 1/2 if updates and inputs (the factors of dW x) are independent, and 1 if they line up fully.

    Returns:
        Claims, each with whether it holds and the numbers that decided it, and tables of numbers.
    """
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
    evidence.close("at one alignment for all layers, all hidden layers have one c", uniform, [0.5, 1.0, 1.0, 1.0, 0.5])
    evidence.close(
        "at alignments of their own, the hidden layers have c of their own", varied, [0.5, 0.8, 1.0, 0.5, 0.5]
    )
    given = {f"hidden.{k}.weight": alignment for k, alignment in enumerate(own.values())}
    result = transform(MLP(64, hidden=3), noise(4, 16), parametrization=Parametrization(alignment=given), lr=1.0)
    names = [name for name, _ in result.module.named_parameters()]
    evidence.close(
        "transform of a model with these alignments gives the same c", [result.plan[name].c for name in names], varied
    )
    rates = {group["param_names"][0]: group["lr"] for group in result.groups(per_parameter=True)}
    evidence.close(
        "the optimizer groups of the model hold the rates 64^-c",
        [rates[name] for name in names],
        [64.0**-c for c in varied],
    )
    return evidence


def dag_against_chain() -> Evidence:
    """Solve chains of layers in three ways and compare the results: section "DAG against chain" of `verify`.

    The ways are `find_c` (takes lists), `find_c_dag` (takes a graph) and `transform` (traces a model).

    Returns:
        Claims, each with whether it holds and the numbers that decided it, and tables of numbers.
    """
    evidence = Evidence()
    rng = random.Random(11)
    table = evidence.table(
        "The same chain for both functions", "chains", "optimizer", "largest difference of c", "of r"
    )
    for optimizer in OPTIMIZERS:
        c_off, r_off = 0.0, 0.0
        for _ in range(CHAINS):
            chain = random_chain(rng, rng.randint(2, LONGEST), 0.3)
            ours, theirs = find_c(**chain, optimizer=optimizer), find_c_dag(chain_graph(**chain), optimizer=optimizer)
            c_off = max(c_off, *(abs(x - theirs.c[k]) for k, x in enumerate(ours.c)))
            r_off = max(r_off, *(abs(x - theirs.r[k]) for k, x in enumerate(ours.r)))
        table.add(CHAINS, optimizer, c_off, r_off)
        evidence.check(f"find_c_dag and find_c agree, {optimizer}", max(c_off, r_off) <= TOLERANCE, number(c_off))
    graph = chain_graph(MUP_A, MUP_B, alpha=[1.0] * 3, omega=[0.5] * 3, u=[1.0] * 3)
    graph.add_node("add", a=0.0, has_weight=False)
    graph.remove_edge(1, 2)
    graph.add_edges_from([(0, "add"), (1, "add"), ("add", 2)])
    around = find_c_dag(graph)
    evidence.close("a skip around the hidden layer changes no c", [around.c[k] for k in range(3)], [0.5, 1.0, 0.5])
    result = transform(MLP(64, hidden=HIDDEN), noise(4, 16))
    of_model = [result.plan[name].c for name, _ in result.module.named_parameters()]
    of_chain = find_c([-0.5, 0.0, 0.0, 0.5], [0.5] * 4, *FULL).c
    evidence.close("the DAG traced from a model gives the c of its chain", of_model, of_chain)
    other = find_c(MUP_A, MUP_B, 0.5, 0.5, 0.5)
    evidence.close("a solution that is solved again gives the c of a new one", other.resolve(*FULL).c, [0.5, 1.0, 0.5])
    return evidence

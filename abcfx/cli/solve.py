"""`abcfx solve`: solves for the learning-rate exponents of a chain or a graph of layers, given as JSON."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import networkx as nx
from rich.console import Console

from abcfx.cli.shared import Command, make_table, print_json, print_text
from abcfx.errors import InvalidInputError
from abcfx.lp.names import RowName
from abcfx.lp.networks import ChainSolution, GraphSolution, find_c, find_c_dag
from abcfx.support.text import shown

HELP = """Solve for the learning-rate exponents of a chain or graph of layers given as JSON; "-" reads standard input.

A chain, embedding first, as abcfx.find_c takes it:
  {"a": [-0.5, 0, 0.5], "b": [0.5, 0.5, 0.5], "alpha": 1, "omega": 0.5, "u": 1}
A graph, as abcfx.find_c_dag takes it; alpha, omega and u stand for every node that has none of its own:
  {"nodes": {"in": {"a": -0.5, "b": 0.5}, "mid": {"a": 0, "b": 0.5}, "add": {"a": 0, "has_weight": false},
             "out": {"a": 0.5, "b": 0.5}},
   "edges": [["in", "mid"], ["mid", "add"], ["in", "add"], ["add", "out"]], "alpha": 1, "omega": 0.5, "u": 1}
Both may have "optimizer" ("adam" or "sgd") and "feature_learning" (true or false). An edge may be
[tail, head, 2]: its input is used twice."""
Problem: TypeAlias = Mapping[str, Any]  # JSON as a person wrote it; find_c and find_c_dag check every value
OPTIONS = ("optimizer", "feature_learning")
ALIGNMENTS = ("alpha", "omega", "u")
EXAMPLES = "  To see examples: abcfx solve --help"


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `abcfx solve`."""
    parser.add_argument("file", metavar="FILE.json", help='a chain or a graph; "-" for standard input')


def _run(arguments: argparse.Namespace, console: Console) -> None:
    """Run `abcfx solve`: read a chain or graph of layers, solve for its exponents, and print them."""
    problem = _read(arguments.file)
    options = {key: problem[key] for key in OPTIONS if key in problem}
    solution: ChainSolution | GraphSolution
    if "nodes" in problem:
        _check_keys(problem, ("nodes", "edges", *ALIGNMENTS, *OPTIONS), required=("nodes", "edges"))
        solution = of_graph = find_c_dag(_graph(problem), **options)
        c, r = of_graph.c, of_graph.r
    else:
        _check_keys(problem, ("a", "b", *ALIGNMENTS, *OPTIONS), required=("a", "b", *ALIGNMENTS))
        solution = of_chain = find_c(problem["a"], problem["b"], *(problem[key] for key in ALIGNMENTS), **options)
        c, r = dict(enumerate(of_chain.c)), dict(enumerate(of_chain.r))
    if arguments.json:
        binding = {str(key): list(map(str, names)) for key, names in solution.binding.items()}
        found = {"c": solution.c, "r": solution.r, "objective": solution.objective, "binding": binding}
        prices = {str(name): price for name, price in solution.shadow_prices.items()}
        print_json({**found, "shadow_prices": prices}, console)
    else:
        _print(solution, c, r, console)


def _read(file: str) -> Problem:
    """Read a JSON object from a file, or from standard input for "-".

    Raises:
        InvalidInputError: there is no such file, or it holds no JSON object.
    """
    path = Path(file)
    try:
        if file != "-" and not path.is_file():
            raise InvalidInputError(f"there is no file {file}.")
        problem = json.loads(sys.stdin.read() if file == "-" else path.read_text(encoding="utf-8"))
    except RecursionError:
        raise InvalidInputError(f"{file} is nested too deeply.") from None
    except OSError as error:  # it may not be read, or its name is too long
        raise InvalidInputError(f"{shown(file)} cannot be read ({error.strerror}).") from None
    except InvalidInputError:
        raise
    except ValueError as error:  # also bytes that are no text
        raise InvalidInputError(f"{file} is no JSON: {error}") from None
    if not isinstance(problem, Mapping):
        raise InvalidInputError(f"{file}: expected a JSON object, got {type(problem).__name__}.\n{EXAMPLES}")
    return problem


def _check_keys(problem: Problem, known: tuple[str, ...], required: tuple[str, ...]) -> None:
    """Raise an error for a problem (a chain or graph, read from JSON) with an unknown key, or with one missing.

    Raises:
        InvalidInputError: names the key, and those that are known.
    """
    for key in problem:
        if key not in known:
            raise InvalidInputError(f"{key!r} is not known; expected {', '.join(known)}.\n{EXAMPLES}")
    for key in required:
        if key not in problem:
            raise InvalidInputError(f"{key!r} is missing; expected {', '.join(required)}.\n{EXAMPLES}")


def _graph(problem: Problem) -> nx.DiGraph:
    """Build the networkx graph of layers that `find_c_dag` takes.

    Alignments (alpha, omega, u) of the whole problem stand in for those that a node lacks.

    Raises:
        InvalidInputError: nodes or edges are malformed.
    """
    nodes, edges = problem["nodes"], problem["edges"]
    if not isinstance(nodes, Mapping) or not all(isinstance(values, Mapping) for values in nodes.values()):
        raise InvalidInputError('"nodes" must be an object of name to attributes, as {"in": {"a": -0.5, "b": 0.5}}')
    common = {key: problem[key] for key in ALIGNMENTS if key in problem}
    graph = nx.DiGraph()
    for name, values in nodes.items():
        graph.add_node(name, **{**common, **values})
    if not isinstance(edges, list):
        raise InvalidInputError('"edges" must be a list, as [["in", "mid"], ["mid", "out"]]')
    for edge in edges:
        ends = edge[:2] if isinstance(edge, list) and len(edge) in (2, 3) else [None]
        if not all(isinstance(name, str) and name in nodes for name in ends):
            raise InvalidInputError(f"edge {edge}: expected [tail, head] or [tail, head, count], both ends among nodes")
        graph.add_edge(edge[0], edge[1], multiplicity=edge[2] if len(edge) == 3 else 1)
    return graph


def _print(
    solution: ChainSolution | GraphSolution,
    c: Mapping[Hashable, float],
    r: Mapping[Hashable, float],
    console: Console,
) -> None:
    """Print the solution of a chain or graph of layers as a table, with the sum of all c and shadow prices.

    Args:
        solution: what the linear program found.
        c: exponent of the learning rate, m^-c (m, the width ratio), of each layer that has a weight.
        r: exponent of the change of each layer's output, which is ~ m^-r.
        console: where to print.
    """
    table = make_table("layer", "c", "r", "held by", left=("layer", "held by"))
    for layer in r:
        rate = f"{c[layer]:.4g}" if layer in c else "-"
        held = ", ".join(map(_held_by, solution.binding.get(layer, ())))
        table.add_row(str(layer), rate, f"{r[layer] + 0.0:.4g}", held)
    console.print(table)
    print_text(f"\nSum of all c: {solution.objective:.6g}", console)
    if solution.shadow_prices:
        print_text("Shadow prices: by how much the sum of all c would fall if a constraint were looser by one", console)
        for name, price in sorted(solution.shadow_prices.items(), key=lambda item: -abs(item[1])):
            print_text(f"  {abs(price):.3g}  {name}", console)


def _held_by(name: Hashable) -> str:
    """Return the name of a constraint that keeps a layer's c (rate ~ width^-c) from being smaller, without the layer.

    A fixed bound is named in full.
    """
    return str(name.label if isinstance(name, RowName) else name)


COMMAND = Command("solve", HELP, _add_arguments, _run)

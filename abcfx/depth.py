"""What a model with more residual blocks than its base gets: factors on residual branches, and their rates and eps.

With L / L0 times as many blocks, a branch is multiplied by (L / L0)^-x, x = 1 ("completep", Dey et al. 2025, arXiv
2505.01618, table 1) or 1/2 ("mup", depth-muP). The sum of L updates must stay O(1): for Adam and its kin rates in the
branches follow (L / L0)^(x - 1), for SGD (L / L0)^(2x - 1); gradients, and so eps, are ~ (L / L0)^-x.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import networkx as nx

from abcfx.dag import LayerDag
from abcfx.errors import InvalidInputError
from abcfx.optimizers import Family
from abcfx.pairing import Blocks
from abcfx.rules import Layer, Vector
from abcfx.rules.kinds import Merge

BRANCH_EXPONENT = {"none": 0.0, "mup": 0.5, "completep": 1.0}


@dataclass(frozen=True)
class DepthExponents:
    """Exponents of the ratio of depths, in the meaning that b, c, g have for width; `decay` of weight decay."""

    b: float = 0.0
    c: float = 0.0
    g: float = 0.0
    decay: float = 0.0

    def moved(self, a: float, family: Family) -> DepthExponents:
        """With a factor ratio^-a moved into the parameter."""
        return DepthExponents(self.b + a, self.c + family.rate_shift(a), self.g - a, self.decay + family.decay_shift(a))


@dataclass(frozen=True)
class DepthScaling:
    """`ratio`: blocks of the target over those of the base. `branches`: merge -> the node that is its branch.

    `a`: exponent of every branch. `inserted` and `absorbed`: exponents of each parameter inside a branch, with factors
    on the branches or without. `left`: merges whose factor no parameter can take.
    """

    ratio: float = 1.0
    a: float = 0.0
    branches: Mapping[str, str] = field(default_factory=dict)
    inserted: Mapping[str, DepthExponents] = field(default_factory=dict)
    absorbed: Mapping[str, DepthExponents] = field(default_factory=dict)
    left: frozenset[str] = frozenset()

    def note(self, option: str) -> tuple[str, ...]:
        """What the report says of depth."""
        if self.ratio == 1.0:
            return ()
        if option == "none":
            return (f"depth: {self.ratio:g} times the base's blocks; depth='none' leaves branches and rates alone",)
        branches = f"{len(self.branches)} residual branches are multiplied by {self.ratio:g}^-{self.a:g}"
        return (f"depth: {self.ratio:g} times the base's blocks: {branches} (depth={option!r})",)


def scale_depth(option: str, dag: LayerDag, blocks: Blocks, families: Mapping[str, Family], decay: str) -> DepthScaling:
    """Depth scaling of a model whose base has another number of blocks; nothing when it has the same.

    Args:
        option: "none", "mup" or "completep".
        dag: the layer DAG.
        blocks: which blocks are repeated.
        families: of each parameter.
        decay: weight decay mode, as in `transform`.

    Raises:
        InvalidInputError: another option, or blocks without residual branches.
    """
    if option not in BRANCH_EXPONENT:
        raise InvalidInputError(f"depth={option!r}; expected one of {', '.join(BRANCH_EXPONENT)}.")
    if not blocks.index or option == "none":
        return DepthScaling(blocks.ratio if blocks.index else 1.0)
    a = BRANCH_EXPONENT[option]
    insides = residual_branches(dag, blocks)
    if not insides:
        raise InvalidInputError(
            f"depth={option!r}: the repeated blocks ({', '.join(blocks.index)}) have no residual branches.\n"
            f"  expected: x + f(x) inside each block. To fix: depth='none'."
        )
    inserted: dict[str, DepthExponents] = {}
    for inside in insides.values():
        for node in inside.nodes:
            kind = dag.kind(node)
            if isinstance(kind, Layer | Vector):
                c = (1 - 2 * a) if families[kind.parameter].update == "gradient" else 1 - a
                inserted[kind.parameter] = DepthExponents(c=c, g=a, decay=c if decay == "independent" else 0.0)
    absorbed, left = dict(inserted), set()
    for merge, inside in insides.items():
        names = dag.takers(inside.branch)
        for name in names:
            absorbed[name] = absorbed[name].moved(a, families[name])
        if not names:
            left.add(merge)
        elif decay == "coupled":  # one number for all where no factor is left
            for name in names:
                inserted[name] = replace(inserted[name], decay=-families[name].decay_shift(a))
                absorbed[name] = replace(absorbed[name], decay=0.0)
    branches = {merge: inside.branch for merge, inside in insides.items()}
    return DepthScaling(blocks.ratio, a, branches, inserted, absorbed, frozenset(left))


@dataclass(frozen=True)
class _Inside:
    """`branch`: what is added to the stream. `nodes`: what only it is made of."""

    branch: str
    nodes: frozenset[str]


def residual_branches(dag: LayerDag, blocks: Blocks) -> dict[str, _Inside]:
    """Merge -> its branch, for every x + f(x) whose f lies in one of the repeated blocks, as the model runs."""
    found = {}
    for merge in dag.nodes_of(Merge):
        sources = [n for n in dag.kind(merge).inputs if n is not None]
        above = {n: nx.ancestors(dag.graph, n) for n in sources}
        streams = [n for n in sources if any(n in above[other] for other in sources)]
        branches = [n for n in sources if n not in streams]
        if len(streams) != 1 or len(branches) != 1:
            continue
        (stream,), (branch,) = streams, branches
        nodes = (above[branch] | {branch}) - above[stream] - {stream}
        parameters = [k.parameter for n in nodes if isinstance(k := dag.kind(n), Layer | Vector)]
        homes = {_block_of(name, blocks) for name in parameters}
        if len(homes) == 1 and None not in homes:
            found[merge] = _Inside(branch, frozenset(nodes))
    return found


def _block_of(parameter: str, blocks: Blocks) -> str | None:
    """The repeated block that a parameter belongs to, as "layers.3"."""
    for container in blocks.index:
        prefix = f"{container}." if container else ""
        number = parameter[len(prefix) :].split(".")[0] if parameter.startswith(prefix) else ""
        if number.isdigit():
            return prefix + number
    return None

"""What a model with more residual blocks than its base gets: factors on residual branches, and their rates and eps.

With L / L0 times as many blocks, a branch is multiplied by (L / L0)^-x, x = 1 ("completep", Dey et al. 2025, arXiv
2505.01618, table 1) or 1/2 ("mup", depth-muP). The sum of L updates must stay O(1): for Adam and its kin rates in the
branches follow (L / L0)^(x - 1), for SGD (L / L0)^(2x - 1); gradients, and so eps, are ~ (L / L0)^-x.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field, replace

from abcfx.dag.layer_dag import LayerDag
from abcfx.errors import InvalidInputError
from abcfx.pairing.blocks import Blocks
from abcfx.rules import Layer, Vector
from abcfx.rules.kinds import Merge
from abcfx.theory.optimizers import OptimizerFamily

BRANCH_EXPONENT = {"none": 0.0, "mup": 0.5, "completep": 1.0}


@dataclass(frozen=True)
class DepthExponents:
    """Exponents of the ratio of depths, in the meaning that b, c, g have for width; `decay` of weight decay."""

    b: float = 0.0
    c: float = 0.0
    g: float = 0.0
    decay: float = 0.0

    def moved(self, a: float, family: OptimizerFamily) -> DepthExponents:
        """With a factor ratio^-a moved into the parameter."""
        return DepthExponents(self.b + a, self.c + family.rate_shift(a), self.g - a, self.decay + family.decay_shift(a))


@dataclass(frozen=True)
class DepthScaling:
    """What the option `depth` comes to.

    `a`: exponent of every branch. `branches`: merge -> its branch. `ratios`: blocks of the target over those of the
    base, for each parameter inside a branch. `inserted` and `absorbed`: exponents of such a parameter, with factors on
    the branches or without. `left`: merges whose factor no parameter can take. `notes`: for the report.
    """

    a: float = 0.0
    branches: Mapping[str, Branch] = field(default_factory=dict)
    ratios: Mapping[str, float] = field(default_factory=dict)
    inserted: Mapping[str, DepthExponents] = field(default_factory=dict)
    absorbed: Mapping[str, DepthExponents] = field(default_factory=dict)
    left: frozenset[str] = frozenset()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Branch:
    """`node`: what is added to the stream. `inside`: the nodes of it alone. `ratio`: of numbers of blocks."""

    node: str
    inside: frozenset[str]
    ratio: float


def scale_depth(
    option: str, dag: LayerDag, blocks: Blocks, families: Mapping[str, OptimizerFamily], decay: str
) -> DepthScaling:
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
    if not blocks.index:
        return DepthScaling()
    a, branches = BRANCH_EXPONENT[option], residual_branches(dag, blocks)
    if option == "none":
        return DepthScaling(notes=_described(branches, "Parametrization(depth='none') leaves branches and rates alone"))
    serial = [container for container in blocks.index if is_serial(container, dag, blocks)]
    if not branches and not serial:  # experts, heads: no matter of depth
        return DepthScaling()
    if not branches:
        raise InvalidInputError(
            f"depth={option!r}: the repeated blocks ({', '.join(serial)}) have no residual branches.\n"
            f"  expected: x + f(x) inside each block. To fix: parametrization=Parametrization(depth='none')."
        )
    inserted: dict[str, DepthExponents] = {}
    ratios: dict[str, float] = {}
    for branch in branches.values():
        for node in branch.inside:
            kind = dag.kind(node)
            if isinstance(kind, Layer | Vector):
                c = (1 - 2 * a) if families[kind.parameter].update == "gradient" else 1 - a
                inserted[kind.parameter] = DepthExponents(c=c, g=a, decay=c if decay == "independent" else 0.0)
                ratios[kind.parameter] = branch.ratio
    absorbed, left = dict(inserted), set()
    for merge, branch in branches.items():
        names = dag.takers(branch.node)
        for name in names:
            absorbed[name] = absorbed[name].moved(a, families[name])
        if not names:
            left.add(merge)
        elif decay == "coupled":  # one number for all where no factor is left
            for name in names:
                inserted[name] = replace(inserted[name], decay=-families[name].decay_shift(a))
                absorbed[name] = replace(absorbed[name], decay=0.0)
    notes = _described(branches, f"residual branches are multiplied by ratio^-{a:g} (depth={option!r})")
    return DepthScaling(a, branches, ratios, inserted, absorbed, frozenset(left), notes)


def _described(branches: Mapping[str, Branch], what: str) -> tuple[str, ...]:
    counts = Counter(branch.ratio for branch in branches.values())
    return tuple(f"depth: {ratio:g} times the base's blocks ({n} branches): {what}" for ratio, n in counts.items())


def residual_branches(dag: LayerDag, blocks: Blocks) -> dict[str, Branch]:
    """Merge -> its branch, for every f that is added to the stream in one of the repeated blocks, as the model runs.

    A residual connection inside of a branch is part of the branch.
    """
    found: dict[str, Branch] = {}
    earlier: dict[str, list[str]] = {}  # merge -> itself and the stream before it, the latest first
    for merge in dag.nodes_of(Merge):
        sources = [n for n in dag.kind(merge).inputs if n is not None]
        above = {n: dag.ancestors(n) for n in sources}
        pairs = [
            (stream, branch, root)
            for stream in sources
            for branch in sources
            if stream != branch and (root := _first(earlier.get(stream, [stream]), above[branch])) is not None
        ]
        if len(sources) != 2 or len(pairs) != 1:
            continue
        ((stream, branch, root),) = pairs
        inside = (above[branch] | {branch}) - dag.ancestors(root) - {root}
        ratio = _ratio([k for n in inside if isinstance(k := dag.kind(n), Layer | Vector)], blocks)
        if ratio is not None:
            found[merge] = Branch(branch, frozenset(inside), ratio)
            earlier[merge] = [merge, *earlier.get(stream, [stream])]
    within = {merge for merge in found for other in found.values() if merge in other.inside}
    return {merge: branch for merge, branch in found.items() if merge not in within}


def _first(nodes: Sequence[str], among: Set[str]) -> str | None:
    return next((node for node in nodes if node in among), None)


def _ratio(kinds: Sequence[Layer | Vector], blocks: Blocks) -> float | None:
    """Blocks of the target over those of the base, if all parameters belong to blocks of one number."""
    homes = [_block_of(kind.parameter, blocks) for kind in kinds]
    if not homes or None in homes or len({home[1] for home in homes if home}) != 1:
        return None
    ours, theirs = max(
        (blocks.counts[home[0]] for home, kind in zip(homes, kinds, strict=True) if home and isinstance(kind, Layer)),
        default=(1, 1),
    )
    return ours / theirs


def is_serial(container: str, dag: LayerDag, blocks: Blocks) -> bool:
    """Whether one block of a container feeds another."""
    homes = {node: _block_of(layer.parameter, blocks) for node, layer in dag.layers()}
    inside = {node: home[1] for node, home in homes.items() if home and home[0] == container}
    return any(
        inside[above] != number for node, number in inside.items() for above in dag.ancestors(node) & inside.keys()
    )


def _block_of(parameter: str, blocks: Blocks) -> tuple[str, str] | None:
    """(container, number) of the repeated block that a parameter belongs to."""
    for container in blocks.index:
        prefix = f"{container}." if container else ""
        number = parameter[len(prefix) :].split(".")[0] if parameter.startswith(prefix) else ""
        if number.isdigit():
            return container, number
    return None

"""The sixteen sections of `verify`, in order, and `verify`, which runs them."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import NamedTuple

import torch

from abcfx.errors import InvalidInputError
from abcfx.support import arguments
from abcfx.support.running import one_thread, preserved_rng
from abcfx.support.text import shown
from abcfx.verification.evidence import Evidence
from abcfx.verification.figure import figure
from abcfx.verification.installation import installation
from abcfx.verification.known_exponents import check_known_exponents, cross_validation, dag_against_chain, per_parameter
from abcfx.verification.modules import initialisation, module_semantics
from abcfx.verification.result import Section, Verification, section_result
from abcfx.verification.stability import STEP, constraint_satisfaction, optimality, randomized_stress
from abcfx.verification.studies import Studies
from abcfx.verification.training import alignment, dynamic_flow, end_to_end
from abcfx.verification.widths import activation_magnitude, width_transfer


class Part(NamedTuple):
    """A section of `verify`, which tests the package, before it has run: its title and the function that runs it.

    Attributes:
        number: position among all sections, from 1.
        title: heading of the section.
        tested: what the section tests, and why.
        run: collects claims and tables; it is given the training runs that several sections share.
    """

    number: int
    title: str
    tested: str
    run: Callable[[Studies], Evidence]


def _alone(section: Callable[[], Evidence]) -> Callable[[Studies], Evidence]:
    """Adapt the function of a section that needs no shared training runs to the signature of those that do."""
    return lambda studies: section()


PARTS = (
    Part(
        1,
        "Known recovery",
        "The linear program finds the learning-rate exponents that are known from the literature (Everett et al. 2024, "
        "arXiv 2407.05872): for the parametrizations SP, NTK, muP and mean field (MFP), under Adam, SGD and Adafactor, "
        "with full, no and worst-case alignment. The program does not look them up: `find_c` solves them for a chain "
        "of layers, and `transform` for the layer DAG that it traces from a model.",
        _alone(check_known_exponents),
    ),
    Part(
        2,
        "Constraint satisfaction",
        "A network is stable if the change of every output stays bounded as the width grows; its exponent r is then "
        "at least 0. From the exponents that the linear program found, r is worked out here term by term, as the "
        "constraints are written, without the solver.",
        _alone(constraint_satisfaction),
    ),
    Part(
        3,
        "Optimality",
        f"No layer could learn faster. Each c is lowered alone by {STEP}, which raises the rate of that layer, and "
        f"some r must then fall below 0.",
        _alone(optimality),
    ),
    Part(
        4,
        "Randomized stress",
        "Random chains and random graphs (forks, merges, products, nodes without a weight) are solved for Adam and "
        "SGD. The answer must be stable by the exact recursion, the same when it is solved again, and the same "
        "whatever the order in which the graph is written down.",
        _alone(randomized_stress),
    ),
    Part(
        5,
        "Cross-validation",
        "The package brings networks that another solver was asked about (m-wojnar/maxP, a mixed-integer program, its "
        "optima checked by duality and recursion), with and without feature learning. Some of them are infeasible, "
        "some invalid.",
        _alone(cross_validation),
    ),
    Part(
        6,
        "Module semantics",
        "The module that `transform` returns computes the network with W replaced by m^-a W, and nothing else. "
        "Parameters keep their names, the user's model stays as it was, and at the base width nothing changes.",
        _alone(module_semantics),
    ),
    Part(
        7,
        "Initialisation",
        "Multipliers are n^-a, standard deviations n^-b and learning rates lr n^-c. Without a base, n is the width "
        "itself; with one, n is the ratio of the widths, and the model's own init is multiplied.",
        _alone(initialisation),
    ),
    Part(
        8,
        "Per-parameter solving",
        "Layers of one role that have alignments of their own get exponents of their own.",
        _alone(per_parameter),
    ),
    Part(
        9,
        "Alignment",
        "The output of a layer y = W x changes by dW x + W dx + dW dx. The alignments alpha, omega and u are the "
        "exponents of these products: 1/2 for independent factors, 1 for aligned ones, absent if a factor is zero.",
        _alone(alignment),
    ),
    Part(
        10,
        "Dynamic flow",
        "`DynamicAlignment` measures after its warm-up, solves the linear program again, and multiplies the rates "
        "for the length of each optimizer step. Its exponents are compared with those of `find_c` at the measured "
        "alignments.",
        _alone(dynamic_flow),
    ),
    Part(
        11,
        "DAG against chain",
        "A chain is a graph too. `find_c`, `find_c_dag` and the graph that is traced from a model must agree on it, "
        "and a solver that is kept and asked again must answer as a new one does.",
        _alone(dag_against_chain),
    ),
    Part(
        12,
        "Width transfer",
        "Planned rates are exact powers of the width. Their purpose is then measured: the layers of a GPT change "
        "alike at every width (`coord_check`), and the best learning rate of a small model is that of a large one "
        "(`transfer_check`). The model as written is measured beside each and has to fail.",
        width_transfer,
    ),
    Part(
        13,
        "Activation magnitude",
        "The size of every layer's output in a GPT of width 64 to 1024, at init and after training with one base rate.",
        activation_magnitude,
    ),
    Part(
        14,
        "End-to-end training",
        "A character model (an MLP) is trained on Python's own sources with Adam, at width 128 over base width 64: "
        "once with rates that follow the measured alignment, once with the planned rates.",
        end_to_end,
    ),
    Part(
        15,
        "Test suite",
        "The tests of the repository are run by pytest, not from here. This section looks at what they need: public "
        "names, versions, examples in docstrings.",
        _alone(installation),
    ),
    Part(
        16,
        "Figure",
        "Six panels show what the sections above measured. The numbers in them are checked, drawn or not.",
        figure,
    ),
)


@arguments.checked(on_section=arguments.optional(arguments.function), raise_errors=arguments.flag)
def verify(
    only: Collection[int] | None = None,
    *,
    picture: Path | None = None,
    on_section: Callable[[], None] | None = None,
    raise_errors: bool = False,
) -> Verification:
    """Test that the package does what it says, in sixteen sections of claims with the numbers that decide them.

    Random generators and the number of threads are restored afterwards.

    Args:
        only: numbers of the sections to run; None runs all.
        picture: where to draw the figure of section 16 (a PNG).
        on_section: called after each section.
        raise_errors: let an error in a section end the run; by default it is a FAIL of the section.

    Returns:
        The sections with their verdicts.

    Raises:
        InvalidInputError: there is no section of a given number.

    Example:
        >>> found = verify({3})
        >>> print(found.verdict, [section.name for section in found])
        PASS ['Optimality']
    """
    known = {part.number for part in PARTS}
    wrong = [each for each in only if each not in known] if only is not None else []
    if wrong or (only is not None and not only):
        said = f"there is no section {', '.join(map(shown, wrong))}" if wrong else "only: expected at least one section"
        raise InvalidInputError(f"{said}; expected numbers from 1 to {len(PARTS)}.\n  To fix: verify({{1, 3}})")
    studies = Studies(picture)
    sections = []
    with one_thread(), preserved_rng():
        for part in PARTS:
            if only is None or part.number in only:
                sections.append(_run(part, studies, raise_errors))
                if on_section is not None:
                    on_section()
    return Verification(rows=tuple(sections))


def _run(part: Part, studies: Studies, raise_errors: bool) -> Section:
    """Run one section and return its result; an error in it becomes a claim that does not hold.

    Args:
        part: the section; torch is seeded with its number.
        studies: training runs that several sections share.
        raise_errors: let an error through.
    """
    torch.manual_seed(part.number)
    start = time.process_time()
    try:
        evidence = part.run(studies)
    except Exception as error:  # a defect anywhere in the package is what a section is to find, and may raise anything
        if raise_errors:
            raise
        evidence = Evidence()
        evidence.check("the section runs to its end", False, f"{type(error).__name__}: {error}".partition("\n")[0])
    return section_result(part.number, part.title, part.tested, evidence, time.process_time() - start)

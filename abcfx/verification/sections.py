"""The sixteen sections, in order, and the run of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from pathlib import Path

import torch

from abcfx.errors import InvalidInputError
from abcfx.support.running import one_thread
from abcfx.verification.evidence import Evidence, Part, Section, Verification
from abcfx.verification.exponents import (
    STEP,
    constraint_satisfaction,
    cross_validation,
    dag_against_chain,
    known_recovery,
    optimality,
    per_parameter,
    randomized_stress,
)
from abcfx.verification.figure import figure
from abcfx.verification.installation import installation
from abcfx.verification.modules import initialisation, module_semantics
from abcfx.verification.studies import Studies
from abcfx.verification.training import alignment, dynamic_flow, end_to_end
from abcfx.verification.widths import activation_magnitude, width_transfer

PARTS = (
    Part(
        1,
        "Known recovery",
        "The linear program finds the learning-rate exponents that are known for SP, NTK, muP and mean field "
        "(MFP) under Adam, SGD and Adafactor, with full, no and worst-case alignment (Everett et al. 2024, arXiv "
        "2407.05872). They are looked up nowhere: `find_c` solves the chain, `transform` the layer DAG that it "
        "traces from a model.",
        known_recovery,
    ),
    Part(
        2,
        "Constraint satisfaction",
        "A network is stable where the change of every output stays bounded: r >= 0. With the exponents that were"
        " found, r is worked out term by term, as the constraints are written, without the solver.",
        constraint_satisfaction,
    ),
    Part(
        3,
        "Optimality",
        f"No layer could learn faster: each c is lowered by {STEP} alone, which raises that rate, and some r must "
        "fall below 0.",
        optimality,
    ),
    Part(
        4,
        "Randomized stress",
        "Random chains and random graphs (forks, merges, products, layers without weight), Adam and SGD: the "
        "answer must be stable by the exact recursion, the same when solved again, and the same whatever the "
        "order in which the graph is written down.",
        randomized_stress,
    ),
    Part(
        5,
        "Cross-validation",
        "Networks that another solver was asked about (m-wojnar/maxP, a mixed-integer program; optima checked by "
        "duality and recursion), with and without feature learning, some infeasible, some invalid. They come with"
        " the package.",
        cross_validation,
    ),
    Part(
        6,
        "Module semantics",
        "What `transform` returns computes the network with W replaced by m^-a W and nothing else; parameters "
        "keep their names, the user's model stays as it was, and at the base width nothing changes.",
        module_semantics,
    ),
    Part(
        7,
        "Initialisation",
        "Multipliers are n^-a, standard deviations n^-b, learning rates lr n^-c: of the width itself without a "
        "base, of the ratio of widths, on top of the model's own init, with one.",
        initialisation,
    ),
    Part(
        8,
        "Per-parameter solving",
        "Layers of one role with alignments of their own get exponents of their own.",
        per_parameter,
    ),
    Part(
        9,
        "Alignment",
        "The change of y = W x is dW x + W dx + dW dx; alpha, omega and u are the exponents of these products: "
        "1/2 for independent factors, 1 for aligned ones, absent where a factor is zero.",
        alignment,
    ),
    Part(
        10,
        "Dynamic flow",
        "`DynamicAlignment` measures after its warm-up, solves the linear program again, and multiplies the rates"
        " for the length of each optimizer step. The exponents are compared with those of `find_c` for the "
        "measured numbers.",
        dynamic_flow,
    ),
    Part(
        11,
        "DAG against chain",
        "A chain is a graph: both fronts of the solver must agree on it, and so must the graph that is traced "
        "from a model. A kept solver that is asked again answers as a new one does.",
        dag_against_chain,
    ),
    Part(
        12,
        "Width transfer",
        "Planned rates are exact powers of width. What that is for is then measured: a GPT's layers move alike at"
        " every width (`coord_check`), and the best learning rate of a small model is that of a large one "
        "(`transfer_check`), each with the model as written beside it, which has to fail.",
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
        "A character MLP on Python's own sources, width 128 over base width 64, Adam: with rates that follow "
        "measured alignment, and with planned ones.",
        end_to_end,
    ),
    Part(
        15,
        "Test suite",
        "The tests of the repository are run by pytest, not from here. What they need is looked at: public names,"
        " versions, examples in docstrings.",
        installation,
    ),
    Part(
        16,
        "Figure",
        "Six panels of what the sections above measured; their numbers are checked whether or not they are drawn.",
        figure,
    ),
)


def verify(
    only: Collection[int] | None = None,
    *,
    picture: Path | None = None,
    on_section: Callable[[], None] | None = None,
    raise_errors: bool = False,
) -> Verification:
    """Runs the sections; random numbers and threads are left as they were.

    Args:
        only: numbers of sections; all of them by default.
        picture: where to draw the figure of section 16 (a PNG).
        on_section: called after each of them.
        raise_errors: an error in a section ends the run; else it is a FAIL of that section.

    Raises:
        InvalidInputError: there is no section of a number.
    """
    known = {part.number for part in PARTS}
    wrong = sorted(set(only or ()) - known)
    if wrong:
        raise InvalidInputError(f"there is no section {', '.join(map(str, wrong))}; expected 1 to {len(PARTS)}.")
    studies = Studies(picture)
    sections = []
    with one_thread(), torch.random.fork_rng(devices=[]):
        for part in PARTS:
            if only is None or part.number in only:
                sections.append(_run(part, studies, raise_errors))
                if on_section is not None:
                    on_section()
    return Verification(tuple(sections))


def _run(part: Part, studies: Studies, raise_errors: bool) -> Section:
    torch.manual_seed(part.number)
    start = time.process_time()
    try:
        evidence = part.run(studies)
    except Exception as error:
        if raise_errors:
            raise
        evidence = Evidence()
        evidence.check("it runs to its end", False, f"{type(error).__name__}: {error}".partition("\n")[0])
    return Section(part.number, part.title, part.tested, evidence, time.process_time() - start)

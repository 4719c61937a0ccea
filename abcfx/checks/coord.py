"""The coordinate check: trains a model for a few steps at several widths and judges how every layer moves."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch

from abcfx.checks.batches import few_tokens
from abcfx.checks.coord_result import CoordCheck, layer_rows
from abcfx.checks.coord_study import FORWARD_SEED, CoordStudy
from abcfx.checks.slopes import what_would_decide
from abcfx.checks.sweep_models import MakeModel, ModelSweep, Prepare, checked_widths, seeds_of
from abcfx.checks.variants import STANDARD, TRANSFORMED
from abcfx.dag.output_loss import OutputLoss
from abcfx.pipeline import TransformOptions
from abcfx.plan.options import ByRole
from abcfx.support import arguments
from abcfx.support.batch_loss import Loss
from abcfx.support.running import call_with_batch, one_thread, seeded
from abcfx.support.verdict import Verdict
from abcfx.theory.optimizers import Optimizer

if TYPE_CHECKING:
    from typing_extensions import Unpack

MOST_SEEDS, SEEDS_ADDED = 60, 3
SEEDS_OF_A_FAILURE = 12  # after as many, a layer that fails is worth more than the verdict on those behind it


@torch.inference_mode(False)
@arguments.checked(control=arguments.flag, steps=arguments.whole(), budget=arguments.number(at_least=0.0))
def coord_check(
    make_model: MakeModel,
    batch: object,
    *,
    widths: Sequence[int],
    loss: Loss | None = None,
    optimizer: Optimizer | Mapping[str, Optimizer] = "adamw",
    lr: ByRole = 1e-3,
    steps: int = 3,
    seeds: int | Sequence[int] = 3,
    budget: float = 30.0,
    control: bool = True,
    base_width: int | None = None,
    prepare: Prepare | None = None,
    **transform_options: Unpack[TransformOptions],
) -> CoordCheck:
    """Check that the rms of every layer's output, and of its change in training, does not depend on width.

    At every width and seed the model is transformed and trained for a few steps on one small batch. Three numbers of
    each layer y = W x (W0 and x0 at init) are followed over width: its rms at init; rms((W - W0) x), which shows a
    learning rate that is too large as well as one that is too small; and rms(W x - W0 x0), the change that the next
    layer sees. Of attention the change of its logits is followed. The slopes of log2 of each number over log2 width
    are compared with the slopes that the solved exponents predict.

    Main arguments:
        make_model: builds the model of a width. It must not seed torch itself.
        batch: `(inputs, targets)`, a dict of keyword arguments, perhaps with labels, or inputs alone; inputs are a
            tensor, or a tuple of positional arguments. At most 16 tokens of it, or 8 samples, are used, the same at
            every width and seed.
        widths: at least two; three octaves tell more.

    Other arguments:
        loss: function of (output, batch) that returns a scalar, or a loss of torch (`nn.MSELoss()`, `F.mse_loss`),
            which is called with output and targets; by default the model's own loss if it returns one, else cross
            entropy of its outputs (as `transform` chooses them) on targets, labels or the next token.
        optimizer: name, such as "adamw", class or instance of an optimizer, or a dict of role or glob pattern to them.
        lr: base learning rate (absolute), or by role. Slopes are cleanest at small rates.
        steps: optimizer steps; two more if updates are still zero after them.
        seeds: number of seeds to begin with, or the seeds themselves.
        budget: seconds. While a slope is inconclusive and they are not spent, more seeds are run, up to 60 in all.
        control: also train the user's unchanged model, with the hyperparameters of the base width, for comparison.
        base_width: the width at which `transform` changes nothing; the smallest of `widths` by default.
        prepare: function of (result, width), called with the `Transformed` of each width and the weights of a seed. It
            may change `result.module`, and may return the optimizer (or several) that is to train it. Use it to check
            groups of your own.
        transform_options: passed on to `transform`.

    Returns:
        A `CoordCheck`: true if it passes; print it for slopes and verdicts, `plot` draws them.

    Raises:
        InvalidInputError: arguments that do not fit; and whatever `transform` raises.

    Example:
        >>> from abcfx.examples.mlp import make_mlp
        >>> batch = torch.randn(8, 64), torch.randint(10, (8,))
        >>> check = coord_check(make_mlp, batch, widths=(16, 32), seeds=1, steps=1, control=False)
        >>> check.widths
        (16, 32)

    Source: Yang et al. 2022, arXiv 2203.03466, appendix D.1, for the method; docs/checks.md for the intervals.
    """
    checked, chosen = checked_widths(widths), seeds_of(seeds)
    first = len(chosen)
    base = checked[0] if base_width is None else base_width
    models = ModelSweep(make_model, batch, base, optimizer, {"lr": lr, **transform_options}, prepare)
    with one_thread():
        models.batch = _probe(models, OutputLoss() if loss is None else models.loss(loss))
        study = CoordStudy(models, checked, models.loss(loss), steps)
        seconds = _until_decided(study, chosen, budget)
        if control:
            study.train_at_all_widths(STANDARD, chosen[:first])
    slopes = study.slopes()
    return CoordCheck(
        rows=layer_rows(slopes),
        widths=tuple(checked),
        base_width=base,
        seeds=tuple(chosen),
        steps=study.steps,
        slopes=slopes,
        measurements=study.measurements(),
        advice=what_would_decide(slopes, checked, seconds),
    )


def _until_decided(study: CoordStudy, seeds: list[int], budget: float) -> float:
    """Train the transformed model with the seeds, and with more until no slope is INCONCLUSIVE or time is up.

    After a layer has failed by itself, 12 seeds in all are enough.

    Args:
        study: the training runs of the check.
        seeds: the seeds to begin with; those that are run beside them are added to it.
        budget: seconds for all runs; the first seeds are run in any case.

    Returns:
        The seconds that one seed takes, at all widths together.
    """
    for width in study.widths:
        study.models.result(width)  # planned once, and no part of what a seed takes
    start, new = time.monotonic(), list(seeds)
    while True:
        began = time.monotonic()
        study.train_at_all_widths(TRANSFORMED, new)
        now = time.monotonic()
        each = (now - began) / len(new)
        rows = layer_rows(study.slopes())
        undecided = any(row.verdict is Verdict.INCONCLUSIVE for row in rows)
        failed = any(row.verdict is Verdict.FAIL and row.cause is None for row in rows)
        affordable = int((budget - (now - start)) / each)
        most = SEEDS_OF_A_FAILURE if failed else MOST_SEEDS
        count = min(max(SEEDS_ADDED, len(seeds) // 2), most - len(seeds), affordable)
        if not undecided or count < 1:
            return each
        new = [max(seeds) + 1 + i for i in range(count)]
        seeds += new


def _probe(models: ModelSweep, loss: Loss) -> object:
    """Return the small part of the user's batch on which the check trains: as few tokens as model and loss take.

    `models` builds the model at each width, and has the batch.
    """
    model = models.build(models.base_width, 0)

    def check_runs(part: object) -> None:
        """Run the model and the loss on a part of the batch, to see whether they raise."""
        with seeded(FORWARD_SEED), torch.no_grad():
            with arguments.run_on("batch", model):
                output = call_with_batch(model, part)
            loss(output, part)

    return few_tokens(models.batch, check_runs)

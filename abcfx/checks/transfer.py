"""The transfer check: where the best learning rate lies at each width, and what the small width's rate costs there."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import torch

from abcfx.checks.sweep import Batches, Sweep
from abcfx.checks.sweep_models import MakeModel, ModelSweep, Prepare, checked_widths, seeds_of
from abcfx.checks.transfer_result import TransferCheck
from abcfx.checks.transfer_study import TransferStudy, judge_transfer
from abcfx.checks.variants import STANDARD, TRANSFORMED
from abcfx.errors import InvalidInputError
from abcfx.pipeline import TransformOptions
from abcfx.plan.options import ByRole
from abcfx.support import arguments
from abcfx.support.batch_loss import Loss
from abcfx.support.numbers import check_number
from abcfx.theory.optimizers import Optimizer

if TYPE_CHECKING:
    from typing_extensions import Unpack

OCTAVES = (-3, -2, -1, 0, 1, 2, 3)


@torch.inference_mode(False)
@arguments.checked(control=arguments.flag)
def transfer_check(
    make_model: MakeModel,
    batches: Batches,
    *,
    widths: Sequence[int],
    loss: Loss | None = None,
    optimizer: Optimizer | Mapping[str, Optimizer] = "adamw",
    lr: ByRole = 2.0**-8,
    lrs: Sequence[float] | None = None,
    seeds: int | Sequence[int] = 2,
    steps: int = 60,
    control: bool = True,
    backend: str = "loky",
    n_jobs: int = -1,
    base_width: int | None = None,
    prepare: Prepare | None = None,
    progress: bool | None = None,
    **transform_options: Unpack[TransformOptions],
) -> TransferCheck:
    """Check that the best learning rate of the smallest width is the best at all others.

    The model is trained at every width, rate and seed. The minimum over rates is that of the parabola through the
    lowest loss and its neighbours in log2 lr. A grid whose lowest loss is on an edge grows.

    Main arguments:
        make_model: builds the model of a width. It must not seed torch itself.
        batches: as many as `steps`, each `(inputs, targets)`, a dict of keyword arguments or inputs alone; or a
            function of the seed that gives them. The same are used at every width and rate. Give fresh ones, not one
            over and over: a model would memorise it.
        widths: at least two; three over two octaves tell something.
        lr: the middle of the grid (absolute), or a dict by role, such as `tune` gives, whose rates move together.
        lrs: the grid: absolute rates, or factors on `lr` if that is a dict. By default `lr` times 1/8 to 8 by twos.

    Other arguments:
        loss: function of (output, batch) that returns a scalar, or a loss of torch (`nn.MSELoss()`, `F.mse_loss`),
            which is called with output and targets; by default the model's own loss if it returns one, else cross
            entropy of its outputs (as `transform` chooses them) on targets, labels or the next token.
        optimizer: name, such as "adamw", class or instance of an optimizer, or a dict of role or glob pattern to them.
        seeds: number of seeds, or the seeds themselves.
        steps: of each run: a tenth of warm-up, then linear decay to 0.
        control: also train the user's unchanged model, with the rates of the base width, for comparison.
        backend: of joblib: "loky" (processes on this machine), "dask", "ray", ...; or "sequential", without joblib.
        n_jobs: number of workers; -1 for all. Each uses one thread.
        base_width: the width at which `transform` changes nothing; the smallest of `widths` by default.
        prepare: function of (result, width), called with the `Transformed` of each width and the weights of a seed. It
            may change `result.module`, and may return the optimizer (or several) that is to train it.
        progress: whether to draw a progress bar; None draws it if stderr is a terminal.
        transform_options: passed on to `transform`.

    Returns:
        A `TransferCheck`: true if the best rate shifts by no more than 0.25 log2 per octave of width.

    Raises:
        InvalidInputError: arguments that do not fit; and whatever `transform` raises.

    Example:
        >>> import torch
        >>> from abcfx.examples.mlp import make_mlp
        >>> batches = [(torch.randn(8, 64), torch.randint(10, (8,))) for _ in range(5)]
        >>> check = transfer_check(make_mlp, batches, widths=(8, 16), steps=5, seeds=1, backend="sequential")
        >>> [row.name for row in check.rows]
        ['grid', 'shift', 'loss']
    """
    checked, chosen = checked_widths(widths), seeds_of(seeds)
    base = checked[0] if base_width is None else base_width
    centre, grid = _grid(lr, lrs)
    models = ModelSweep(make_model, None, base, optimizer, {"lr": lr, **transform_options}, prepare)
    sweep = Sweep(models, batches, loss, steps, backend, n_jobs, progress)
    variants = [TRANSFORMED, *([STANDARD] if control else [])]
    study = TransferStudy(sweep, checked, chosen, variants, base if prepare is None else None)
    study.train_grid(grid)
    curves, shifts = study.curves(), study.shifts()
    return TransferCheck(
        rows=judge_transfer([curve for curve in curves if curve.model == TRANSFORMED], shifts[TRANSFORMED]),
        widths=tuple(checked),
        base_width=base,
        seeds=tuple(chosen),
        steps=steps,
        lr=lr,
        centre=centre,
        curves=curves,
        shifts=shifts,
        runs=study.training_runs(centre),
    )


def _grid(lr: ByRole, lrs: Sequence[float] | None) -> tuple[float | None, list[float]]:
    """Work out which learning rates to try, as factors on the planned rates.

    Args:
        lr: absolute base rate, or a dict of rates by role of parameter ("embedding", "hidden", ...).
        lrs: absolute rates to try, or factors if `lr` is a dict; None tries 1/8 to 8 times `lr`.

    Returns:
        (absolute rate that factor 1 stands for, None if `lr` is a dict; factors in increasing order).

    Raises:
        InvalidInputError: there are fewer than three different positive rates.
    """
    centre = None if isinstance(lr, Mapping) else check_number("lr", lr, above=0)
    if lrs is not None and not isinstance(lrs, Iterable):
        raise arguments.wrong("lrs", lrs, "a list of rates", "lrs=[0.001, 0.002, 0.004]")
    factors = (
        [2.0**k for k in OCTAVES]
        if lrs is None
        else sorted({check_number("lrs: each", x, above=0) / (centre or 1.0) for x in lrs})
    )
    if len(factors) < 3 or factors[0] <= 0:
        raise InvalidInputError(f"lrs={lrs}; expected at least three different positive rates.")
    return centre, factors

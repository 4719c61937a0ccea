"""The checks of `verify_growth` that a large model computes what the small one does: finite values, constants, routers,
layers, outputs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import torch

from abcfx.capture.second_inputs import Inputs, variations
from abcfx.growing.check_result import GrowthCheckRow, judged
from abcfx.growing.grown_pair import GrownPair
from abcfx.growing.output_gap import outputs_difference, outputs_of
from abcfx.growing.refusals import refusals
from abcfx.growing.runs import Compared
from abcfx.support.running import evaluating
from abcfx.support.verdict import Verdict

PRODUCTS = frozenset({"mm", "addmm", "bmm", "baddbmm", "mv"})
NEGLIGIBLE = 1e-3
"""RMS of logits below which their difference counts as absolute, not relative."""
NOT_TAKEN = (RuntimeError, ValueError, LookupError, AssertionError)
"""What models raise for a batch size or a length that they do not take."""


def sanity(pair: GrownPair) -> GrowthCheckRow:
    """Check that the large model's weights are finite and its outputs are numbers (check C0)."""
    for weight, tensor in pair.large.named_parameters():
        if not bool(tensor.detach().isfinite().all()):
            return judged("C0", Verdict.FAIL, "it has entries that are not finite",
                          "load the large model anew and grow again", node="weights", path=weight)  # fmt: skip
    with evaluating(pair.large):
        outputs = outputs_of(pair.large, pair.args, pair.kwargs)
    floats = {path: tensor.double() for path, tensor in outputs.items() if tensor.is_floating_point()}
    bad = next((path for path, tensor in floats.items() if bool(tensor.isnan().any())), None)
    if bad is not None:
        return judged("C0", Verdict.FAIL, "it has NaN", "mend the first layer that C4 names", node=f"output {bad}")
    lines = [
        f"output {path or '.'}: mean {t.mean():.3g}, std {t.std():.3g}, min {t.min():.3g}, max {t.max():.3g}"
        for path, t in floats.items()
        if t.numel() > 1
    ]
    return judged("C0", Verdict.PASS, details=lines[:4])


def constants(pair: GrownPair) -> GrowthCheckRow:
    """Check that no op or constant (rotary table, eps, ...) keeps the large model from computing the same: check C1."""
    with pair.equally_deep():
        found = refusals(pair.plan, pair.small, pair.large)
    trace = pair.plan.factors.large
    details = [f"{len(trace.buffers)} buffers, {len(trace.calls)} calls"]
    if not found:
        return judged("C1", Verdict.PASS, value=0.0, tolerance=0.0, details=details)
    first = found[0]
    details += map(str, found[1:6])
    return judged("C1", Verdict.FAIL, first.reason, first.fix, value=float(len(found)), tolerance=0.0,
                  node=first.op, path=first.path, details=details)  # fmt: skip


def routers(pair: GrownPair) -> GrowthCheckRow:
    """Check that every router of experts gives the same logits in small and large model (check C2)."""
    limit, compared = pair.tolerance, {each.call: each for each in pair.compared}
    found = list(_router_calls(pair))
    if not found:
        return judged("C2", Verdict.SKIP, "no product leads to a top-k or an argmax: there are no routers")
    worst: tuple[float, Compared] | None = None
    details, warnings = list[str](), list[str]()
    for product, chooser in found:
        each = compared.get(product)
        if each is None:
            continue
        logits = next(iter(pair.runs.values(product)))[1].double()
        rms = float(logits.pow(2).mean().sqrt())
        error = each.error * rms / max(rms, NEGLIGIBLE)
        details.append(f"{each.path}: logits x{each.ratio:.6g}, off by {error:.2g}")
        warnings += _idle_experts(pair, each.path, logits, chooser)
        if worst is None or error > worst[0]:
            worst = error, each
    if worst is None:
        return judged("C2", Verdict.SKIP, "the logits of the routers could not be followed", details=details)
    error, at = worst
    if not error <= limit:
        return judged(
            "C2", Verdict.FAIL,
            f"router logits x{at.ratio:.4g} (expected x1.0): the input is wider, and the weight was not divided",
            f"divide the weight of {at.path} by {at.ratio:.4g}",
            value=error, tolerance=limit, node=at.name, path=at.path, details=details,
        )  # fmt: skip
    if warnings:
        return judged("C2", Verdict.WEAK, "; ".join(warnings[:3]), "a router with random weights, so that tokens "
                      "spread", value=error, tolerance=limit, node=at.name, path=at.path, details=details)  # fmt: skip
    return judged("C2", Verdict.PASS, value=error, tolerance=limit, node=at.name, path=at.path, details=details[:8])


def _router_calls(pair: GrownPair) -> Iterator[tuple[int, int]]:
    """Yield, for each router of the large model, the places of two of its ops in the list of recorded ops.

    The first op computes the router's logits, the second one chooses experts by them.
    """
    calls = pair.runs.factors.large.calls
    made = {ref.index: i for i, call in enumerate(calls) for ref in call.outs}
    seen = set()
    for index, call in enumerate(calls):
        if call.name not in ("topk", "argmax", "sort"):
            continue
        at: int | None = index
        while at is not None and calls[at].name not in PRODUCTS:
            before = [ref for ref in calls[at].inputs if ref.index in made]
            at = made[before[0].index] if before else None
        if at is not None and at not in seen:
            seen.add(at)
            yield at, index


def _idle_experts(pair: GrownPair, path: str, logits: torch.Tensor, chooser: int) -> list[str]:
    """Return sentences about a router of experts whose logits are all equal, or some of whose experts get no token.

    Args:
        pair: the two models with their runs.
        path: module path of the router.
        logits: its logits in the large model.
        chooser: index of the call that chooses experts.
    """
    if float(logits.std()) < 1e-9:
        return [f"{path}: all logits are equal, so that ties decide and all tokens go to the same experts"]
    call = pair.runs.factors.large.calls[chooser]
    if call.name != "topk":
        return []
    experts, k = logits.shape[-1], int(pair.runs.factors.small.calls[chooser].argument("k"))
    tokens = logits.numel() // experts
    chosen = Counter(logits.reshape(-1, experts).topk(min(k, experts)).indices.flatten().tolist())
    idle = [i for i in range(experts) if not chosen[i]]
    return [f"{path}: experts {idle} get none of {tokens} tokens"] if idle and tokens * k >= 64 * experts else []


def layers(pair: GrownPair) -> GrowthCheckRow:
    """Check that each tensor of the large model's run is the small model's with its entries repeated (check C4).

    The row names the first tensor that is not.
    """
    limit, compared = pair.tolerance, pair.compared
    if not compared:
        return judged("C4", Verdict.SKIP, "no tensor of the run could be compared")
    wrong = next((each for each in compared if not each.error <= limit), None)
    worst = max(compared, key=lambda each: each.error)
    details = [f"{len(compared)} tensors of {len(pair.runs.factors.large.calls)} calls compared, "
               f"worst {worst.error:.2g} at {worst.path or worst.name}"]  # fmt: skip
    details += [f"new block {block}: adds {gap:.2g} of its input's RMS" for block, gap in pair.drift.items()]
    if wrong is not None:
        scale = f"x{wrong.ratio:.4g} (expected x{wrong.expected:.4g})"
        return judged(
            "C4", Verdict.FAIL,
            f"{wrong.path or 'the model itself'}: the first tensor that is off, {scale}, by {wrong.error:.2g} of its "
            f"RMS",
            "fill it as abcfx.grow does: tile block by block, divide by the ratio along contracted dims",
            value=wrong.error, tolerance=limit, node=wrong.name, path=_weight_of(pair, wrong) or wrong.path,
            details=details,
        )  # fmt: skip
    moved = [(block, gap) for block, gap in pair.drift.items() if not gap <= limit]
    if moved:
        block, gap = moved[0]
        return judged("C4", Verdict.WEAK, f"drift: {len(moved)} new blocks change the stream",
                      "zero their output weights; where a norm follows the sum, the stream changes all the same",
                      value=gap, tolerance=limit, node="new block", path=block, details=details)  # fmt: skip
    return judged("C4", Verdict.PASS, value=worst.error, tolerance=limit, node=worst.name, path=worst.path,
                  details=details)  # fmt: skip


def _weight_of(pair: GrownPair, at: Compared) -> str:
    """Return the name of the parameter that the call `at` reads, directly or through views; "" for none."""
    factors = pair.runs.factors
    inputs = factors.large.calls[at.call].inputs
    origins = {use.origin[0] for ref in inputs for dim in factors.of(ref) for use in dim if use.origin}
    return min(origins) if len(origins) == 1 else next((o for o in sorted(origins) if o.endswith("weight")), "")


def outputs(pair: GrownPair) -> GrowthCheckRow:
    """Check that small and large model give equal outputs for up to three other batch sizes and lengths (check C6).

    Only inputs that the small model takes are tried.
    """
    limit, dims = pair.tolerance, pair.plan.output_dims()
    worst, label, details = -1.0, "", list[str]()
    for inputs in variations(pair.args, pair.kwargs):
        if len(details) == 3:
            break
        expected = _outputs_if_taken(pair, inputs)
        if expected is None:
            continue
        try:
            with evaluating(pair.large):
                got = outputs_of(pair.large, *inputs.fresh())
        except Exception as error:  # the small model takes these inputs: whatever the large one raises is its fault
            return judged(
                "C6", Verdict.FAIL,
                f"on {inputs.label} the large model raises {type(error).__name__}: {error}; the small one does not",
                "a table of positions or a cache of the large model that was made for one length", node="outputs",
                details=details,
            )  # fmt: skip
        gap = outputs_difference(expected, got, dims)
        details.append(f"{inputs.label}: {gap:.2g}")
        if gap > worst:
            worst, label = gap, inputs.label
    if not details:
        return judged("C6", Verdict.SKIP, "the small model takes no other batch size or length than the batch's")
    if not worst <= limit:
        is_fault = all(gap <= limit for gap in pair.drift.values())  # new blocks that add something change outputs
        return judged(
            "C6", Verdict.FAIL if is_fault else Verdict.WEAK, f"outputs differ on {label}",
            "mend the first layer that C4 names; or a table of positions or a cache that was made for one length",
            value=worst, tolerance=limit, node="outputs", details=details,
        )  # fmt: skip
    return judged("C6", Verdict.PASS, value=worst, tolerance=limit, node="outputs", details=details)


def _outputs_if_taken(pair: GrownPair, inputs: Inputs) -> dict[str, torch.Tensor] | None:
    """Return the small model's outputs by path; None if calling it with these inputs raises an error."""
    try:
        with evaluating(pair.small):
            return outputs_of(pair.small, *inputs.fresh())
    except NOT_TAKEN:
        return None

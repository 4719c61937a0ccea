"""Checks that a grown model computes what the small one does: sanity, constants, routers, layers, outputs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch

from abcfx.capture.second_inputs import variations
from abcfx.errors import AbcfxError
from abcfx.growing.finding import Finding
from abcfx.growing.output_gap import evaluating, output_gap, outputs_of
from abcfx.growing.pair import Pair
from abcfx.growing.refusals import refusals
from abcfx.growing.runs import Compared

PRODUCTS = frozenset({"mm", "addmm", "bmm", "baddbmm", "mv"})
DEAD = 1e-3


def sanity(pair: Pair) -> Finding:
    """C0: weights and outputs are finite, and no tensor of weights is all zero that was not so in the small model."""
    name = "C0 sanity"
    for weight, tensor in pair.large.named_parameters():
        if not bool(tensor.detach().isfinite().all()):
            return Finding(name, "FAIL", node="weights", path=weight, cause="it has entries that are not finite",
                           fix="load the large model anew and grow again")  # fmt: skip
    with evaluating(pair.large):
        outputs = outputs_of(pair.large, pair.args, pair.kwargs)
    floats = {path: tensor.double() for path, tensor in outputs.items() if tensor.is_floating_point()}
    lines = tuple(
        f"output {path or '.'}: mean {t.mean():.3g}, std {t.std():.3g}, min {t.min():.3g}, max {t.max():.3g}"
        for path, t in floats.items()
        if t.numel() > 1
    )
    bad = next((path for path, tensor in floats.items() if bool(tensor.isnan().any())), None)
    if bad is not None:
        return Finding(name, "FAIL", node=f"output {bad}", cause="it has NaN", fix="see the first layer of C4")
    return Finding(name, "PASS", details=lines[:4])


def constants(pair: Pair) -> Finding:
    """C1: nothing in structure and constants (rotary tables, eps, counts) stands against keeping the function."""
    name = "C1 constants and geometry"
    with pair.equally_deep():
        found = refusals(pair.plan, pair.small, pair.large)
    buffers = len(pair.plan.factors.large.buffers)
    details = (f"{buffers} buffers, {len(pair.plan.factors.large.calls)} calls",)
    if found:
        first = found[0]
        return Finding(name, "FAIL", float(len(found)), 0.0, first.op, first.path, first.reason, first.fix,
                       (*details, *map(str, found[1:6])))  # fmt: skip
    return Finding(name, "PASS", 0.0, 0.0, details=details)


def routers(pair: Pair) -> Finding:
    """C2: the logits of every router are those of the small model, on the activations of the batch."""
    name, limit = "C2 routers", pair.tolerance
    compared = {(each.call): each for each in pair.compared}
    found = list(_router_calls(pair))
    if not found:
        return Finding(name, "SKIP", cause="no product leads to a top-k or an argmax: there are no routers")
    worst: tuple[float, Compared] | None = None
    details, warnings = [], []
    for product, chooser in found:
        each = compared.get(product)
        if each is None:
            continue
        logits = next(iter(pair.runs.values(product)))[1].double()
        error = each.error * float(logits.pow(2).mean().sqrt()) / max(float(logits.pow(2).mean().sqrt()), DEAD)
        details.append(f"{each.path}: logits x{each.ratio:.6g}, off by {error:.2g}")
        warnings += _degenerate(pair, each.path, logits, chooser)
        if worst is None or error > worst[0]:
            worst = error, each
    if worst is None:
        return Finding(name, "SKIP", cause="the logits of the routers could not be followed", details=tuple(details))
    error, at = worst
    if not error <= limit:
        return Finding(
            name, "FAIL", error, limit, at.name, at.path,
            f"router logits x{at.ratio:.4g} (expected x1.0): the input is wider, and the weight was not divided",
            f"divide the weight of {at.path} by {at.ratio:.4g}", tuple(details),
        )  # fmt: skip
    if warnings:
        return Finding(name, "WARN", error, limit, at.name, at.path, "; ".join(warnings[:3]),
                       "a router with random weights, so that tokens spread", tuple(details))  # fmt: skip
    return Finding(name, "PASS", error, limit, at.name, at.path, details=tuple(details[:8]))


def _router_calls(pair: Pair) -> Iterator[tuple[int, int]]:
    """(index of the product that makes the logits, index of the call that chooses)."""
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


def _degenerate(pair: Pair, path: str, logits: torch.Tensor, chooser: int) -> list[str]:
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


def layers(pair: Pair) -> Finding:
    """C4: every tensor of the run is the tiled one of the small model; names the first that is not."""
    name, limit = "C4 layers", pair.tolerance
    compared = pair.compared
    if not compared:
        return Finding(name, "SKIP", cause="no tensor of the run could be compared")
    bad = next((each for each in compared if not each.error <= limit), None)
    worst = max(compared, key=lambda each: each.error)
    details = [f"{len(compared)} tensors of {len(pair.runs.factors.large.calls)} calls compared, "
               f"worst {worst.error:.2g} at {worst.path or worst.name}"]  # fmt: skip
    drift = list(_drift(pair))
    details += [f"new block {block}: adds {gap:.2g} of its input's RMS" for block, gap in drift]
    if bad is not None:
        weight = _weight_of(pair, bad)
        scale = f"x{bad.ratio:.4g} (expected x{bad.expected:.4g})"
        return Finding(
            name, "FAIL", bad.error, limit, bad.name, weight or bad.path,
            f"{bad.path or 'the model itself'}: the first tensor that is off, {scale}, by {bad.error:.2g} of its RMS",
            "fill it as abcfx.grow does: tile block by block, divide by the ratio along contracted dims",
            tuple(details),
        )  # fmt: skip
    moved = [(block, gap) for block, gap in drift if not gap <= limit]
    if moved:
        block, gap = moved[0]
        return Finding(name, "WARN", gap, limit, "new block", block,
                       f"drift: {len(moved)} new blocks change the stream",
                       "zero their output weights; where a norm follows the sum, the stream changes all the same",
                       tuple(details))  # fmt: skip
    return Finding(name, "PASS", worst.error, limit, worst.name, worst.path, details=tuple(details))


def _weight_of(pair: Pair, at: Compared) -> str:
    """The parameter that a call takes, straight or through views."""
    factors = pair.runs.factors
    origins = {leg.origin[0] for ref in factors.large.calls[at.call].inputs for d in factors.of(ref)
               for leg in d if leg.origin}  # fmt: skip
    return min(origins) if len(origins) == 1 else next((o for o in sorted(origins) if o.endswith("weight")), "")


def _drift(pair: Pair) -> Iterator[tuple[str, float]]:
    """(path, how much it adds) of every block that the small model has no counterpart of."""
    seen: dict[str, float] = {}

    def hook(path: str) -> Any:
        def measure(module: Any, args: Any, kwargs: Any, output: Any) -> None:
            given = [t for t in (*args, *kwargs.values()) if isinstance(t, torch.Tensor)]
            out = output[0] if isinstance(output, tuple | list) else output
            if given and isinstance(out, torch.Tensor) and out.shape == given[0].shape:
                rms = given[0].double().pow(2).mean().sqrt().clamp_min(1e-30)
                seen[path] = float((out - given[0]).double().abs().max() / rms)

        return measure

    hooks = []
    for container, twins in pair.blocks.index.items():
        done = set()
        for block, twin in twins.items():
            if twin in done:
                path = f"{container}.{block}"
                module = pair.large.get_submodule(path)
                hooks.append(module.register_forward_hook(hook(path), with_kwargs=True))
            done.add(twin)
    try:
        if hooks:
            with evaluating(pair.large):
                pair.large(*pair.args, **pair.kwargs)
    finally:
        for each in hooks:
            each.remove()
    yield from seen.items()


def outputs(pair: Pair) -> Finding:
    """C6: outputs are equal for two other batch sizes and lengths too, those that both models accept."""
    name, limit = "C6 outputs", pair.tolerance
    dims = pair.plan.output_dims()
    worst, label, details = -1.0, "", list[str]()
    whole = _keeps_depth(pair)
    for inputs in variations(pair.args, pair.kwargs):
        if len(details) == 3:
            break
        try:
            calls = [(inputs.fresh_args(), inputs.fresh_kwargs()) for _ in range(2)]
            gap = output_gap(pair.small, pair.large, calls[0], calls[1], dims)
        except AbcfxError:
            raise
        except Exception:  # a length or batch that one of them does not take
            continue
        details.append(f"{inputs.label}: {gap:.2g}")
        if gap > worst:
            worst, label = gap, inputs.label
    if not details:
        return Finding(name, "SKIP", cause="no inputs but the batch itself could be made")
    if not worst <= limit:
        status = "FAIL" if whole else "WARN"
        return Finding(name, status, worst, limit, "outputs", "", f"outputs differ on {label}",
                       "see the first layer of C4; a table of positions or a cache that was made for one length",
                       tuple(details))  # fmt: skip
    return Finding(name, "PASS", worst, limit, "outputs", details=tuple(details))


def _keeps_depth(pair: Pair) -> bool:
    """Whether new blocks add nothing: then outputs must be equal."""
    return all(gap <= pair.tolerance for _, gap in _drift(pair))

"""Trains a small GPT that grows twice: dense, then a mixture of experts, then twice as wide and two layers deeper.

python -m abcfx.examples.grow_gpt --out out        (five minutes on one core)
python -m abcfx.examples.grow_gpt --steps 100 100 200 --lr 0.01 0.01 0.005

The large mixture is trained from scratch beside it for as many steps, which takes more compute.
"""

from __future__ import annotations

import argparse
import copy
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import abcfx
from abcfx.examples.gpt import GPT, MLP, GPTConfig
from abcfx.examples.text import VOCABULARY, read_characters
from abcfx.growing import Grown
from abcfx.support.running import one_thread

BATCH, CONTEXT, HELD_OUT = 16, 64, 128
PHASES = ("dense", "mixture", "grown")


class Mixture(nn.Module):
    """A mixture of MLPs: for each token the outputs of the `top_k` best, with weights that add up to one.

    Input and output have shape (batch, tokens, d_model). Every MLP sees every token, which costs more than necessary
    and keeps the code short.
    """

    def __init__(self, config: GPTConfig, experts: int, top_k: int) -> None:
        super().__init__()
        self.top_k = top_k
        self.router = nn.Linear(config.d_model, experts, bias=False)
        self.experts = nn.ModuleList(MLP(config) for _ in range(experts))

    def forward(self, x_BTC: torch.Tensor) -> torch.Tensor:
        probabilities_BTE = self.router(x_BTC).softmax(-1)
        best_BTK, index_BTK = probabilities_BTE.topk(self.top_k, -1)
        best_BTK = best_BTK / best_BTK.sum(-1, keepdim=True)
        weights_BTE = torch.zeros_like(probabilities_BTE).scatter(-1, index_BTK, best_BTK)
        outputs_BTCE = torch.stack([expert(x_BTC) for expert in self.experts], -1)
        return (outputs_BTCE * weights_BTE.unsqueeze(-2)).sum(-1)


class MixtureGPT(GPT):
    """A GPT with a mixture of experts in the place of each MLP."""

    def __init__(self, config: GPTConfig, experts: int, top_k: int) -> None:
        super().__init__(config)
        for block in self.blocks:
            block.mlp = Mixture(config, experts, top_k)


@dataclass(frozen=True)
class Setting:
    """Sizes, steps and rates of the experiment.

    Attributes:
        width: of the dense model.
        layers: of the dense model.
        experts: number of experts in each mixture.
        top_k: number of experts that each token is sent to.
        steps: of the three phases.
        lr: of the three phases, at the small width.
        scratch_lr: of the large model that is trained from scratch, at the small width.
        noise: on the copies when the model grows, relative to the weights.
        seed: of text and init.
    """

    width: int = 32
    layers: int = 2
    experts: int = 4
    top_k: int = 2
    steps: tuple[int, ...] = (400, 400, 400)
    lr: tuple[float, ...] = (2.0**-5, 2.0**-6, 2.0**-7)
    scratch_lr: float = 2.0**-7
    noise: float = 1.0
    seed: int = 0

    def dense(self) -> GPT:
        """Build the model of the first phase."""
        return GPT(self._config(1, 0))

    def mixture(self) -> MixtureGPT:
        """Build the model of the second phase."""
        return MixtureGPT(self._config(1, 0), self.experts, self.top_k)

    def large(self) -> MixtureGPT:
        """Build the model of the third phase, twice as wide and two layers deeper."""
        return MixtureGPT(self._config(2, 2), self.experts, self.top_k)

    def _config(self, times: int, more: int) -> GPTConfig:
        return GPTConfig(VOCABULARY, CONTEXT, self.layers + more, 16, times * self.width)


class Text:
    """Windows of the standard library's source in random order: some held out, the others in batches."""

    def __init__(self, seed: int) -> None:
        characters = read_characters()
        size = CONTEXT + 1
        windows = characters[: len(characters) // size * size].view(-1, size)
        order = torch.randperm(len(windows), generator=torch.Generator().manual_seed(seed))
        self.held_out = windows[order[:HELD_OUT]].long()
        self._windows, self._order = windows, order[HELD_OUT:]

    def batches(self, start: int, steps: int) -> Iterator[torch.Tensor]:
        """Yield ids (BATCH, CONTEXT + 1) for the steps from `start` on; no window comes twice."""
        for step in range(start, start + steps):
            yield self._windows[self._order[step * BATCH : (step + 1) * BATCH]].long()


@dataclass
class Curve:
    """A training run.

    Attributes:
        losses: of each step, in nats per character, on text not seen before.
        compute: up to the end of each step, in FLOPs.
        ends: number of steps at the end of each phase.
        held_out: loss on the held-out text at the end of each phase.
    """

    losses: list[float]
    compute: list[float]
    ends: list[int]
    held_out: list[float]


def loss_of(model: nn.Module, ids: torch.Tensor) -> torch.Tensor:
    """Return the mean cross entropy of the next character."""
    return F.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())


def held_out_loss(model: nn.Module, text: Text) -> float:
    """Return the loss on the held-out text."""
    with torch.no_grad():
        return loss_of(model, text.held_out).item()


def train(
    model: nn.Module, optimizer: torch.optim.Optimizer, text: Text, steps: int, curve: Curve, warm: int = 0
) -> None:
    """Train for some steps and append them to a curve; rates are constant after a linear warm-up.

    Args:
        model: the model.
        optimizer: its optimizer.
        text: its batches are used from the end of the curve on.
        steps: number of steps.
        curve: extended in place.
        warm: number of steps of the warm-up.
    """
    rates = [group["lr"] for group in optimizer.param_groups]
    start, spent = len(curve.losses), curve.compute[-1] if curve.compute else 0.0
    per_step = 0.0
    for step, ids in enumerate(text.batches(start, steps)):
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * min(1.0, (step + 1) / max(1, warm))
        counter = FlopCounterMode(display=False)
        if step:
            loss = _step(model, optimizer, ids)
        else:
            with counter:
                loss = _step(model, optimizer, ids)
            per_step = float(counter.get_total_flops())
        spent += per_step
        curve.losses.append(loss)
        curve.compute.append(spent)
    curve.ends.append(len(curve.losses))
    curve.held_out.append(held_out_loss(model, text))


def _step(model: nn.Module, optimizer: torch.optim.Optimizer, ids: torch.Tensor) -> float:
    loss = loss_of(model, ids)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.item()


def carried_on(grown: Grown, ratio: float) -> torch.optim.Optimizer:
    """Build the optimizer of a grown model, with its state taken over.

    Args:
        grown: the grown model.
        ratio: factor on the learning rates that growth gives: rate of the new phase over that of the old one.
    """
    assert grown.optimizer_state is not None
    optimizer = torch.optim.AdamW(grown.param_groups)
    optimizer.load_state_dict(grown.optimizer_state)
    for group in optimizer.param_groups:
        group["lr"] *= ratio
    return optimizer


def grow_while_training(setting: Setting, text: Text) -> Curve:
    """Train the three phases and check each growth; raises CheckFailedError if a check fails."""
    curve = Curve([], [], [], [])
    probe = text.held_out[:8]
    torch.manual_seed(setting.seed)
    dense = setting.dense()
    optimizer: torch.optim.Optimizer = torch.optim.AdamW(dense.parameters(), setting.lr[0], (0.9, 0.95))
    train(dense, optimizer, text, setting.steps[0], curve, warm=setting.steps[0] // 10)
    _print_phase(curve, "dense", dense)

    upcycled = abcfx.upcycle(dense, setting.mixture, probe[:, :-1], optimizer=optimizer)
    mixture = upcycled.module
    print(upcycled.report, f"\nheld-out loss after upcycling: {held_out_loss(mixture, text):.4f}", sep="")
    routing = abcfx.verify_growth(mixture, copy.deepcopy(mixture), probe[:, :-1], checks=("C0", "C2"))
    print(routing["C2"])
    optimizer = carried_on(upcycled, setting.lr[1] / setting.lr[0])
    train(mixture, optimizer, text, setting.steps[1], curve)
    _print_phase(curve, "mixture", mixture)

    grown = abcfx.grow(
        mixture, setting.large, probe[:, :-1], optimizer=optimizer, noise=setting.noise, seed=setting.seed
    )
    large = grown.module
    print(grown.report, f"\nheld-out loss after growing: {held_out_loss(large, text):.4f}", sep="")
    after = carried_on(grown, 1.0)
    print(abcfx.verify_growth(mixture, grown, probe[:, :-1], optimizers=(optimizer, after)))
    after = carried_on(grown, setting.lr[2] / setting.lr[1])
    train(large, after, text, setting.steps[2], curve)
    _print_phase(curve, "grown", large)
    return curve


def from_scratch(setting: Setting, text: Text, steps: int) -> Curve:
    """Train the large mixture from scratch, with init and rates that abcfx transfers from the small one."""
    curve = Curve([], [], [], [])
    torch.manual_seed(setting.seed)
    result = abcfx.transform(
        setting.large(), text.held_out[:2, :-1], base=setting.mixture(), optimizer="adamw", lr=setting.scratch_lr
    )
    optimizer = torch.optim.AdamW(result.param_groups, betas=(0.9, 0.95))
    train(result.module, optimizer, text, steps, curve, warm=setting.steps[0] // 10)
    _print_phase(curve, "from scratch", result.module)
    return curve


def _print_phase(curve: Curve, name: str, model: nn.Module) -> None:
    print(
        f"{name}, {sum(p.numel() for p in model.parameters()):,} parameters: {curve.ends[-1]} steps, "
        f"{curve.compute[-1]:.3g} FLOPs, held-out loss {curve.held_out[-1]:.4f}",
        flush=True,
    )


def smoothed(curve: Curve, window: int) -> list[float]:
    """Return the mean of the last `window` losses at each step, or of all so far where there are fewer."""
    sums = torch.tensor([0.0, *curve.losses], dtype=torch.float64).cumsum(0)
    ends = torch.arange(1, len(curve.losses) + 1)
    starts = (ends - window).clamp_min(0)
    return list(((sums[ends] - sums[starts]) / (ends - starts)).tolist())


@dataclass(frozen=True)
class Comparison:
    """Smoothed training losses, on fresh text, and the costs of reaching them.

    Attributes:
        grown: final loss of the grown model.
        scratch_at_equal_steps: loss of the model from scratch after as many steps.
        scratch_at_equal_compute: its loss after as much compute.
        needed_steps: steps until its loss is as low, over those of the grown model; None if it never is.
        needed_compute: compute until its loss is as low, over that of the grown model; None if it never is.
    """

    grown: float
    scratch_at_equal_steps: float
    scratch_at_equal_compute: float
    needed_steps: float | None
    needed_compute: float | None


def compare(grown: Curve, scratch: Curve) -> Comparison:
    """Compare the grown model with the one from scratch."""
    window = max(1, len(grown.losses) // 20)
    ours, theirs = smoothed(grown, window), smoothed(scratch, window)
    at = min(sum(spent <= grown.compute[-1] for spent in scratch.compute), len(theirs)) - 1
    as_low = next((i for i, loss in enumerate(theirs) if i >= window - 1 and loss <= ours[-1]), None)
    return Comparison(
        ours[-1],
        theirs[min(len(ours), len(theirs)) - 1],
        theirs[max(at, 0)],
        None if as_low is None else (as_low + 1) / len(ours),
        None if as_low is None else scratch.compute[as_low] / grown.compute[-1],
    )


def plot(grown: Curve, scratch: Curve, path: Path) -> None:
    """Draw both losses over steps and over compute."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11.0, 4.2), dpi=100, layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    window = max(1, len(grown.losses) // 40)
    for curve, name, colour in ((scratch, "large from scratch", "tab:red"), (grown, "grown", "tab:blue")):
        for panel, places in zip(axes, (range(1, len(curve.losses) + 1), curve.compute), strict=True):
            panel.plot(list(places), smoothed(curve, window), color=colour, label=name)
    for k, (end, name) in enumerate(zip(grown.ends[:-1], PHASES[1:], strict=True)):
        for panel, place in zip(axes, (end, grown.compute[end - 1]), strict=True):
            panel.axvline(place, color="0.6", lw=0.8)
            at = {"xycoords": ("data", "axes fraction"), "xytext": (3, -10 - 13 * k), "textcoords": "offset points"}
            panel.annotate(name, (place, 1.0), **at)
    axes[0].set(xlabel="step", ylabel=f"loss, nats per character (mean of {window} steps)")
    axes[1].set(xlabel="compute, FLOPs")
    axes[0].set_ylim(top=1.7 * min(grown.losses))
    for panel in axes:
        panel.grid(alpha=0.3)
    axes[1].legend(frameon=False)
    figure.savefig(path)


def main(argv: Sequence[str] | None = None) -> Comparison:
    """Run the experiment with the options of the command line; print the comparison, write figure and numbers."""
    standard = Setting()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    phases = ", ".join(PHASES)
    parser.add_argument("--steps", type=int, nargs=3, default=standard.steps, help=f"of the phases {phases}")
    parser.add_argument("--lr", type=float, nargs=3, default=standard.lr, help="of each phase, at the small width")
    parser.add_argument("--scratch-lr", type=float, default=standard.scratch_lr, help="from scratch, at small width")
    for name in ("width", "layers", "experts", "top-k", "seed"):
        parser.add_argument(f"--{name}", type=int, default=getattr(standard, name.replace("-", "_")))
    parser.add_argument("--noise", type=float, default=standard.noise, help="of the copies, relative to the weights")
    parser.add_argument("--out", type=Path, help="folder for the figure and the numbers as JSON; needs matplotlib")
    options = vars(parser.parse_args(argv))
    out: Path | None = options.pop("out")
    options["steps"], options["lr"] = tuple(options["steps"]), tuple(options["lr"])
    setting = replace(standard, **options)
    with one_thread():
        text = Text(setting.seed)
        grown = grow_while_training(setting, text)
        scratch = from_scratch(setting, text, sum(setting.steps))
    found = compare(grown, scratch)
    for name, value in asdict(found).items():
        print(f"{name.replace('_', ' ')}: {'not reached' if value is None else format(value, '.3f')}")
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        plot(grown, scratch, out / "grow_gpt.png")
        numbers = {"setting": asdict(setting), "comparison": asdict(found)}
        curves = {"grown": asdict(grown), "scratch": asdict(scratch)}
        (out / "grow_gpt.json").write_text(json.dumps(numbers | {"curves": curves}))
    return found


if __name__ == "__main__":
    main()

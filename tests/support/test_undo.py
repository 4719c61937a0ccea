"""Transforms in threads and under Ctrl-C leave torch, models and other threads as they were."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import get_args

import pytest
import torch
from torch import nn

import abcfx
from abcfx.capture.options import CaptureMethod
from abcfx.support.undo import Undo, one_at_a_time

_METHODS = [method for method in get_args(CaptureMethod) if method not in ("auto", "record_values")]


class Mlp(nn.Module):
    """Two layers; on a call it may do as if the user pressed Ctrl-C."""

    def __init__(self, width: int, *, interrupts: bool = False) -> None:
        super().__init__()
        self.inner, self.outer, self.interrupts = nn.Linear(3, width), nn.Linear(width, 2), interrupts

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply both layers."""
        if self.interrupts:
            signal.raise_signal(signal.SIGINT)
        return torch.as_tensor(self.outer(torch.relu(self.inner(x))))


@pytest.fixture(autouse=True)
def _ctrl_c_interrupts() -> Iterator[None]:
    """Let Ctrl-C raise KeyboardInterrupt: a suite that a shell started in the background ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def _torch_state() -> list[dict[str, object]]:
    """Return all attributes of what a capture patches."""
    patched = (nn.Module, torch.autograd.Function, torch.compiler, torch.utils.checkpoint, torch.fx.graph)
    return [dict(vars(each)) for each in patched]


@contextmanager
def _training(errors: list[BaseException]) -> Iterator[None]:
    """Train a model, with random numbers, in another thread within the block; its errors are added to the list."""
    done = threading.Event()

    def train() -> None:
        model = nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.1), nn.Linear(8, 2))
        try:
            while not done.wait(0.0005):
                model(torch.randn(3, 3)).sum().backward()
        except Exception as error:  # whatever a patch of torch does to another thread
            errors.append(error)

    thread = threading.Thread(target=train)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _in_threads(methods: list[str]) -> list[BaseException]:
    """Transform a model in a thread for each capture method, beside a thread that trains; return all errors."""
    errors: list[BaseException] = []

    def work(method: CaptureMethod) -> None:
        try:
            x = torch.rand(3, 3)
            result = abcfx.transform(Mlp(8), x, base=Mlp(4), capture=method)
            torch.testing.assert_close(result.fold()(x), result.module(x))
        except BaseException as error:  # whatever it is, the test reports it
            errors.append(error)

    threads = [threading.Thread(target=work, args=(method,)) for method in methods]
    with _training(errors):
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    return errors


def test_threads() -> None:
    """Transforms in several threads are all right, a thread that trains is not disturbed, and torch is as before."""
    before = _torch_state()
    assert _in_threads(["symbolic", "record", "symbolic", "export"]) == []
    assert _torch_state() == before


@pytest.mark.slow
def test_many_threads() -> None:
    """The same holds for twenty-four transforms."""
    before = _torch_state()
    assert _in_threads(_METHODS * 8) == []
    assert _torch_state() == before


@pytest.mark.parametrize("method", _METHODS)
@pytest.mark.parametrize("apply", ["insert", "inplace"])
def test_interrupted(method: CaptureMethod, apply: str) -> None:
    """Ctrl-C in the middle of a capture ends in KeyboardInterrupt, and torch and the model are as before."""
    model = Mlp(8, interrupts=True)
    before = _torch_state(), signal.getsignal(signal.SIGINT)
    held = dict(model.named_parameters())
    values = {name: parameter.detach().clone() for name, parameter in held.items()}
    with pytest.raises(KeyboardInterrupt):
        abcfx.transform(model, torch.rand(3, 3), base=Mlp(4), apply=apply, capture=method)  # type: ignore[arg-type]
    assert (_torch_state(), signal.getsignal(signal.SIGINT)) == before
    assert all(held[name] is parameter for name, parameter in model.named_parameters())
    assert all(torch.equal(values[name], parameter) for name, parameter in held.items())


def test_undone_without_an_exit() -> None:
    """What the exit of a context never undid is undone at the end of the function, once and in reverse order."""
    log: list[str] = []
    left: list[Undo] = []

    @one_at_a_time
    def change() -> None:
        for name in "ab":
            left.append(Undo(lambda name=name: log.append(name)))  # type: ignore[misc]
            left[-1].__enter__()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        change()
    for each in left:
        each.__exit__()
    assert log == ["b", "a"]


def test_second_interrupt_is_not_held_back() -> None:
    """A second Ctrl-C goes through at once."""
    reached: list[int] = []

    @one_at_a_time
    def long() -> None:
        for step in range(3):
            signal.raise_signal(signal.SIGINT)
            reached.append(step)

    with pytest.raises(KeyboardInterrupt):
        long()
    assert reached == [0]

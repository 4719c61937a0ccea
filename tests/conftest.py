"""Settings for all tests."""

import datetime
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest
import torch

# Tests run small tensors: more threads than idle cores only wait for each other.
torch.set_num_threads(1)


@pytest.fixture
def one_process(tmp_path: Path) -> Iterator[None]:
    """Start torch.distributed with this process alone, and stop it after the test."""
    address = f"file://{tmp_path}/meeting"
    wait = datetime.timedelta(seconds=30)
    torch.distributed.init_process_group("gloo", init_method=address, rank=0, world_size=1, timeout=wait)
    yield
    torch.distributed.destroy_process_group()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call() -> Generator[None, None, None]:
    """Skip a test that needs torch's own Muon where torch has none, which is before 2.9."""
    try:
        return (yield)
    except AttributeError as error:
        if "Muon" in str(error) and not hasattr(torch.optim, "Muon"):
            pytest.skip("torch has Muon since 2.9")
        raise

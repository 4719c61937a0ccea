"""Settings for all tests."""

import datetime
from collections.abc import Iterator
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

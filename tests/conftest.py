"""Settings for all tests."""

import torch

# Tests run small tensors: more threads than idle cores only wait for each other.
torch.set_num_threads(1)

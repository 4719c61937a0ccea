"""Checks on a user's own model: how every layer moves, where the best learning rate lies, and a search for it."""

from abcfx.checks.coord import coord_check
from abcfx.checks.coord_result import CoordCheck
from abcfx.checks.optimizer import check_optimizer
from abcfx.checks.rate_search import tune
from abcfx.checks.transfer import transfer_check
from abcfx.checks.transfer_result import TransferCheck
from abcfx.checks.tune_result import Tuned

__all__ = ["CoordCheck", "TransferCheck", "Tuned", "check_optimizer", "coord_check", "transfer_check", "tune"]

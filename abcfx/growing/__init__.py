"""Growing: fills a larger model with a trained smaller one, so that it computes the same, and checks that it does."""

from abcfx.growing.check_result import GrowthCheckResult, GrowthCheckRow
from abcfx.growing.grown import Grown
from abcfx.growing.larger_model import grow
from abcfx.growing.plan import GrowthPlan, plan_growth
from abcfx.growing.scales import Scales, clone_exponents, solve_scales
from abcfx.growing.steps import GrowthStep
from abcfx.growing.upcycling import upcycle
from abcfx.growing.verify import verify_growth

__all__ = [
    "Grown",
    "GrowthCheckResult",
    "GrowthCheckRow",
    "GrowthPlan",
    "GrowthStep",
    "Scales",
    "clone_exponents",
    "grow",
    "plan_growth",
    "solve_scales",
    "upcycle",
    "verify_growth",
]

"""Growing a model: what a larger copy must be made of so that it computes what the small one does."""

from abcfx.growing.finding import Finding, Verification
from abcfx.growing.grown import Grown, Step, grow
from abcfx.growing.plan import GrowthPlan, plan_growth
from abcfx.growing.scales import Scales, clone_exponents, solve_scales
from abcfx.growing.upcycling import upcycle
from abcfx.growing.verify import verify_growth

__all__ = [
    "Finding",
    "Grown",
    "GrowthPlan",
    "Scales",
    "Step",
    "Verification",
    "clone_exponents",
    "grow",
    "plan_growth",
    "solve_scales",
    "upcycle",
    "verify_growth",
]

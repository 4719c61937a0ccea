"""Growing a model: what a larger copy must be made of so that it computes what the small one does."""

from abcfx.growth.finding import Finding, Verification
from abcfx.growth.grow import Grown, Step, grow
from abcfx.growth.plan import GrowthPlan, plan_growth
from abcfx.growth.scales import Scales, clone_exponents, solve_scales
from abcfx.growth.upcycle import upcycle
from abcfx.growth.verify import verify_growth

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

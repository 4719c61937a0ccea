"""Growing a model: what a larger copy must be made of so that it computes what the small one does."""

from abcfx.growth.grow import Grown, Step, grow
from abcfx.growth.plan import GrowthPlan, plan_growth
from abcfx.growth.scales import Scales, clone_exponents, solve_scales

__all__ = ["Grown", "GrowthPlan", "Scales", "Step", "clone_exponents", "grow", "plan_growth", "solve_scales"]

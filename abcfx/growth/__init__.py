"""Growing a model: what a larger copy must be made of so that it computes what the small one does."""

from abcfx.growth.scales import Scales, clone_exponents, solve_scales

__all__ = ["Scales", "clone_exponents", "solve_scales"]

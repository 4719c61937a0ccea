from abcfx import auditing as auditing
from abcfx import checks as checks
from abcfx import dynamic as dynamic
from abcfx import errors as errors
from abcfx import growing as growing
from abcfx import hyper_connections as hyper_connections
from abcfx import lp as lp
from abcfx import passes as passes
from abcfx import rules as rules
from abcfx.auditing import audit as audit
from abcfx.capture.options import Capture as Capture
from abcfx.checks import check_optimizer as check_optimizer
from abcfx.checks import coord_check as coord_check
from abcfx.checks import transfer_check as transfer_check
from abcfx.checks import tune as tune
from abcfx.dynamic import DynamicAlignment as DynamicAlignment
from abcfx.errors import AbcfxError as AbcfxError
from abcfx.exponents.options import Parametrization as Parametrization
from abcfx.growing import grow as grow
from abcfx.growing import upcycle as upcycle
from abcfx.growing import verify_growth as verify_growth
from abcfx.lp.networks import find_c as find_c
from abcfx.lp.networks import find_c_dag as find_c_dag
from abcfx.pipeline import transform as transform
from abcfx.plan.groups import param_groups as param_groups
from abcfx.plan.options import InitLike as InitLike
from abcfx.plan.options import Overrides as Overrides
from abcfx.plan.options import Schedule as Schedule
from abcfx.rewrite.marks import scaled as scaled
from abcfx.theory.optimizers import OptimizerFamily as OptimizerFamily
from abcfx.transformed import Transformed as Transformed

__all__: list[str]
__version__: str

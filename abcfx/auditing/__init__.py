"""Whether the parametrization that a user's model already has is right, read off two widths without training."""

from abcfx.auditing.audit_result import Audit
from abcfx.auditing.run import audit

__all__ = ["Audit", "audit"]

"""`verify`: sixteen sections of evidence that the package does what it says, and the page that shows them."""

from abcfx.verification.markdown import document
from abcfx.verification.result import Section, Verification
from abcfx.verification.sections import PARTS, verify

__all__ = ["PARTS", "Section", "Verification", "document", "verify"]

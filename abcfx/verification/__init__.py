"""`abcfx verify`: sixteen sections of evidence that the system does what it says, and the document that shows them."""

from abcfx.verification.document import document
from abcfx.verification.evidence import Check, Section, Verification
from abcfx.verification.sections import PARTS, verify

__all__ = ["PARTS", "Check", "Section", "Verification", "document", "verify"]

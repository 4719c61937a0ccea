"""Exponents turned into numbers: init, multipliers, optimizer groups, and the spec that travels in a checkpoint."""

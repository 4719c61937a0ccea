"""Fills the tensors of a larger model from those of a smaller one: along width, along depth, and by experts."""

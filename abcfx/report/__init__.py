"""The outcome of a transform in words and pictures."""

"""Random models of many ops, and the properties that `transform` has for each of them.

`python -m tests.fuzz --seeds 0:1000` tests them; `recipes` draws a model from a seed, `properties` holds what is
tested, and `oracle` measures how every tensor of a model scales with width.
"""

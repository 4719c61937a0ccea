"""Finds exponents of width: multiplier a and init b from a table, learning rate c, change r by a linear program."""

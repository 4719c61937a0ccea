"""Exponents of width: a and b by rule and table, then c, r and G by the linear program of the layer DAG."""

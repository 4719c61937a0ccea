"""The layer DAG of a traced model: a graph of its layers, merges, norms and products, and functions that query it."""

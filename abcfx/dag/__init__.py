"""The layer DAG of a captured graph, built once and never changed, and the questions that others ask of it."""

"""The only package that changes a model: it adds scale nodes or hooks, sets weights, and folds factors into weights."""

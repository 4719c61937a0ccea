"""Facts from papers: how large the updates of optimizers are, and tables of named parametrizations."""

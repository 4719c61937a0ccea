"""What stands in papers: how optimizers move weights, and tables of named parametrizations."""

"""Short programs that read from top to bottom: build a model, transform it, train a little, and check it."""

"""abcfx: width-stable scales, init and learning rates for any PyTorch model, by a compiler pass and a linear program."""

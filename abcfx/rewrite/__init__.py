"""The only room that changes a model: scale nodes, hooks and weights, and taking them back for inference."""

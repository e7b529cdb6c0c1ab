"""Making a model smaller: weight-only int8 linear layers, and their files in the layout of compressed-tensors."""

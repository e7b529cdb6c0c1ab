"""Making a model smaller: int8, int4 and NF4 linear layers, in the files of compressed-tensors and bitsandbytes."""

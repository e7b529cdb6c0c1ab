"""Quantization: int8, int4 and NF4 linear layers, in the file formats of compressed-tensors and bitsandbytes."""

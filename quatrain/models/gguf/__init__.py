"""GGUF, llama.cpp's file format, as a model folder: its names, its metadata and its tensors, in both directions."""

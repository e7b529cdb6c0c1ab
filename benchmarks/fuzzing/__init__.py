"""The inputs of `benchmarks/fuzz.py`: what is valid, how it is broken, and how the command line is asked about it."""

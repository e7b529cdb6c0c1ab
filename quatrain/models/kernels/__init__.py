"""Hand-written passes: for the CPU in training, and FlexAttention on CUDA."""

"""Any model folder (plain, quantized, adapter) becomes a model with its tokenizer; merging of adapters."""

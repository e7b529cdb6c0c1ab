"""LINE 4, speaking: logits processors, decoding and the engine, the one place where tokens are generated."""

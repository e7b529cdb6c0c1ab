"""Aligning a model with preferences: DPO, and pairs of answers from the model's own samples."""

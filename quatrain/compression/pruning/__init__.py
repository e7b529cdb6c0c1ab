"""Pruning: weights set to zero by importance, and heads, feed-forward units and layers removed."""

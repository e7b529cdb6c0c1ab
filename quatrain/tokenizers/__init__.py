"""Tokenizers: training, loading, chat templates, and the one chat renderer."""

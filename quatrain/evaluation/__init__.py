"""LINE 4, measuring: perplexity, charts and the report of a run."""

"""The transformer stack, from configuration to heads."""

"""Prompts for any task: templates, shots and their selection, the context guard, previews, self-consistency."""

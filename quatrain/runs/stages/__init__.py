"""The stages of a recipe: one module per kind, each a function `(settings, context) -> StageResult`."""

"""Recipes and their execution: the recipe, its stages, the runner, the run folder."""

"""Tasks: what examples of data mean, and pipelines that use a model for a task.

This file imports nothing, so that a task whose examples need no model, such as `text2sql`, loads no torch.
"""

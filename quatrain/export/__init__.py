"""Exports a model to other programs' formats, and proves that the files compute what the model computes.

Each exporter is one module here with an `EXPORTER`, found by its place.
"""

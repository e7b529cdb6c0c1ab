"""Proteins: models of families of related sequences."""

"""Calculations that a small model cannot do in its head, and a calculator can."""

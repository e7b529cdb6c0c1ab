"""Sums of two numbers with two digits: a task with a reward that a program verifies."""

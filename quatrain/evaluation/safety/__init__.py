"""Fairness, safety and memory: stereotypes, word associations, toxicity, refusals, memorized text, planted secrets.

Plain functions; the suites `stereotypes`, `weat`, `toxicity`, `refusals`, `memorization` and `canaries` ask them about
a model. The small files in `files/` were written for this project to try the measures out: a score on them is no
evidence that a model is fair or safe. `card.LIMITS` says what each measure cannot show.
"""

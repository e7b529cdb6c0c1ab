"""Curation: which text is worth learning from.

A curation recipe (`settings`) names sources and steps. `units` cuts the sources into units of work, `runner` passes
them through the steps in several processes, `funnel` counts what each step kept, and `card` and `page` describe the
result.
A step is one file in `steps/`, found by its place (`step`).
"""

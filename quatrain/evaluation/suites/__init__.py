"""The suites: one file each, found by its place. Each has one class `SUITE` (`quatrain.evaluation.suite`)."""

"""The cases of the battery, one module for each family or group of heads: a list CASES of `battery.Case`."""

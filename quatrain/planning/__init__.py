"""Estimates of cost from a model's configuration: parameters, FLOPs, memory, and what this machine can hold.

`counts` counts parameters, FLOPs and bytes; `limits` refuses what memory cannot hold; `training_memory` estimates a
training step and `training_plan` a whole method or stage; `machine` measures the device. The other answer to cost is a
trial of some real steps, `quatrain.runs.trial`.
"""

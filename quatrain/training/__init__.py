"""LINE 2, learning: objectives, the one trainer, optimizers, schedules, checkpoints."""

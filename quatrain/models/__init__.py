"""LINE 2, the networks: one transformer stack, whose families are data. Knows nothing of training, files or text."""

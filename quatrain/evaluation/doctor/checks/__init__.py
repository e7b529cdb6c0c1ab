"""The checks of the doctor, found by their place: each module here lists its own in `CHECKS`."""

"""What a training run will read and learn, and what cannot work, before it begins."""

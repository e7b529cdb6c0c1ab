"""What trained models are used for: questions to a database, and whatever follows."""

"""Pictures as vectors: the patch embedding and the projector. The transformer is the one that reads texts."""

"""Sound: log-mel features, and the convolutions through which an encoder reads them."""

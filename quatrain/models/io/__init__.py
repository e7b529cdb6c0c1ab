"""Model folders: reading and writing safetensors and `config.json`."""

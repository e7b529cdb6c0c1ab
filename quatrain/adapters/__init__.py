"""LINE 3, adapting: small trained parts over a frozen model, and their files in PEFT's format."""

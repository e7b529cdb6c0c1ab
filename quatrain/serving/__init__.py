"""The server: OpenAI's and Anthropic's protocols over the engine."""

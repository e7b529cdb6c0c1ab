"""The forms of requests and answers: OpenAI's and Anthropic's."""

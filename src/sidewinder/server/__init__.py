"""The HTTP server: OpenAI's and Anthropic's endpoints over one engine (`sidewinder serve`)."""

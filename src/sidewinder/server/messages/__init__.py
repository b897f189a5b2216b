"""Anthropic's Messages: the same answers as chats, in blocks."""

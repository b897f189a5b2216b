"""OpenAI's Responses: the same answers as chats, in items."""

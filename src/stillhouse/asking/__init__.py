"""Asking a model behind an OpenAI-compatible API: bodies and replies, the store of answers, budgets, the client."""

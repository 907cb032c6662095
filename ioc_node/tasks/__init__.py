"""The story of a task, from both sides."""

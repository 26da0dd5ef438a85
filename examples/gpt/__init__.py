"""A character-level GPT on the Python language reference, a real text that comes with every Python."""

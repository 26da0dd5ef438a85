"""The `rankfire` command: `main.py` is the entry point, every other file is one command."""

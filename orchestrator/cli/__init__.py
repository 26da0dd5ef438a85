"""The `rankfire` command: `main.py` is the entry point, every other file is one command.

A command turns its options into calls of the driver and prints what came out; it decides nothing about training.
"""

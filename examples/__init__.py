"""Programs to read and run: `python examples/NAME.py`."""

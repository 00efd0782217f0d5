"""Our form against the common form, side by side in one run: `python -m benchmarks training`."""

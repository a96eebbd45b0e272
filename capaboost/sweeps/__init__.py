"""Sweeps: every run of a file of tasks, methods, seeds and settings, to the end, on what there is."""

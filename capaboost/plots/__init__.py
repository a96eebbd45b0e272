"""Plots of the JSON reports, and in `results` of result files."""

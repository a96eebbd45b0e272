"""Plots of the JSON reports."""

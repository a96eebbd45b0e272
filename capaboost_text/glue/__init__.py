"""GLUE: tasks, data, splits, metrics and runs."""

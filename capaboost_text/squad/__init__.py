"""SQuAD v1.1 and v2.0: data, windows, answers, metrics and runs."""

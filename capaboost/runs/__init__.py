"""The runs of VTAB-1k, GLUE, SQuAD and language models, from their settings to their tasks."""

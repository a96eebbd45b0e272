"""The runs of VTAB-1k, GLUE and SQuAD, from their settings to their tasks."""

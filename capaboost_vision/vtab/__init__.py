"""VTAB-1k, images of one's own and rendered tasks: sources, labels, and the task that a run trains on."""

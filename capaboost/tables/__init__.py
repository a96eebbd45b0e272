"""Tables of the result files."""

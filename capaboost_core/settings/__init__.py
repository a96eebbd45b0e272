"""Settings as strict pydantic models, and the YAML that they are read from."""

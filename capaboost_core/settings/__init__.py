"""Settings as strict pydantic models, in words, and from YAML."""

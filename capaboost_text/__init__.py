"""CapaBoost for text encoders of transformers; in preparation."""

"""The model registry. In reading order: registration, promotion."""

"""The configuration file: units, settings with their defaults, loading and checking."""

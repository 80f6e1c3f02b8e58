"""The party that gathers."""

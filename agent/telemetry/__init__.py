"""Logging (and, later, metrics) of the daemon."""

"""Builds a checked configuration from a config file and command-line overrides."""

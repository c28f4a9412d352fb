"""From a config file and command-line overrides to a checked configuration."""

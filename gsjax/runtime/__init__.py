"""Processes, signals, files, checkpoints and metrics; nothing about images or methods."""

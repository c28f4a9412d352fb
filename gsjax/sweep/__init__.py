"""Sweeps over settings, and what their runs leave behind."""

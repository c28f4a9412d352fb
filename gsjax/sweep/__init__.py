"""Sweeps over settings, and the records that their runs leave."""

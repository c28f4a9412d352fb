"""Evaluations of an encoder."""

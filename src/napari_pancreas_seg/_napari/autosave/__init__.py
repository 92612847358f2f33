"""Corrections that were not exported yet."""

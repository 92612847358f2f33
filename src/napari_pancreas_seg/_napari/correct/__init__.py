"""Correcting and reviewing a mask."""

"""Masks as plain arrays: what is done to them and what is measured on them."""

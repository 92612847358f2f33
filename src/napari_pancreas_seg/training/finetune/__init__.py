"""Learning from a user's own corrected cases."""

"""The user's own cases and models that learn from them."""

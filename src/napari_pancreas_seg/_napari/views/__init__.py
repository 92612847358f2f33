"""Ways of looking at a CT and its mask."""

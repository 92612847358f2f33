"""The fit: recipe, augmentation, one step, the loop around it."""

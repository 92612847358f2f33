"""Data sets as they are published and as people keep them: recognised, and read case by case."""

"""Many CTs of a folder, one after the other."""

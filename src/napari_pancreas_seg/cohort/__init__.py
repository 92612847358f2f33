"""Many CTs: find them, segment them, keep a table of the results."""

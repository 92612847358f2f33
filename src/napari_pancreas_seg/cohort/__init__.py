"""Many CTs: which, in what order, what became of each."""

"""The network in a process of its own."""

"""A run of the network in a viewer."""

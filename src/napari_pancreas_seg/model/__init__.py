"""The network: its layers and builder, its losses, and the bundle it travels in."""

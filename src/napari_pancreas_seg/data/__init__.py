"""What the demo needs: the synthetic sample CT, and the download of a real example."""

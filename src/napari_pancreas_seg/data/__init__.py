"""What the demo needs: a synthetic CT made by code, and the download of a real example."""

"""Data for the demo: the synthetic sample CT, and the download of a real example."""

"""Training data: data sets, their layouts, slices at one physical scale."""

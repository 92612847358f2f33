"""Training: data sets and their layouts, augmentation, the fit and its evaluation."""

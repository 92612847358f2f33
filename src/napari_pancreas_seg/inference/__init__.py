"""From a CT to its mask: preprocessing, schedule, predictor and the generator around them."""

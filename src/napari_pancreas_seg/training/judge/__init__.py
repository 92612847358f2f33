"""How good a model is: validation, evaluation, calibration."""

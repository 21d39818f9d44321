"""Code that training and evaluation share: configuration, models, data files, errors, run records."""

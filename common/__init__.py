"""What training and evaluation both need: configuration, data files, errors, run records."""

"""What the scores say: intervals, baselines, precisions, shortlists, errors, and the dimension to deploy."""

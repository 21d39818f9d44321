"""Analysis of the scores: intervals, baselines, precisions, shortlists, errors, and the dimension to deploy."""

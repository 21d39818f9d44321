"""Scores at every dimension: embeddings, similarities, tasks, pairs, and intervals."""

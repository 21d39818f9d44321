"""Scores at every dimension: embeddings, similarities, tasks, pairs, and how sure a score is."""

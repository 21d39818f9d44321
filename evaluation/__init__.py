"""Evaluation scripts for truncated sentence embeddings."""

"""Training scripts for Matryoshka sentence embeddings."""

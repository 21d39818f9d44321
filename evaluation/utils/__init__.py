"""Helpers of the evaluation scripts."""

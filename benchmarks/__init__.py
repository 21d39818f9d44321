"""Side-by-side measurements, runnable."""

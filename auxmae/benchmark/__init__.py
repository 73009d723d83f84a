"""Measuring the model against other ways to do the same work."""

"""Strict gin, the run as JSON, and the folder of a run."""

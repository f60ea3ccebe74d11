"""Checkpoints: save, restore, keep, verify."""

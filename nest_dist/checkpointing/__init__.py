"""Checkpoints: save, restore, retain, verify."""

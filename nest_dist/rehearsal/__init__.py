"""A training step compiled for absent TPUs: its memory, cycles and collectives."""

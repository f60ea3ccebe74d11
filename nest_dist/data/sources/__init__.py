"""Data sets: one file for each kind, which alone imports the library of that kind."""

"""Checks, failures, files, tree paths, random numbers, chips. Imports no other room."""

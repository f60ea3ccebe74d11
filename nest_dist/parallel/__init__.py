"""Processes, the mesh, axis rules, and what is exchanged between devices."""

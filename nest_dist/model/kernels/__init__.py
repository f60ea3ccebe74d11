"""Kernels for TPUs: each computes a branch of an encoder layer in one pass over its blocks."""

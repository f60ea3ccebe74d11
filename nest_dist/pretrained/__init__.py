"""Weights in and out: formats, recognition, transfer, preprocessing."""

"""Augmentation on the device, inside the step.

Each transform takes images [B, H, W, C], the key of the step and the rows of these examples in the
global batch, int32 [B]; the two key all randomness. It gives images of the same shape.
"""

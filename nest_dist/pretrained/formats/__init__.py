"""Files of weights (flax, torch, safetensors), names of parameters (native, official, timm)."""

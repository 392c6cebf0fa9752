"""The operators: one file each, a plain-PyTorch reference, and the map they are defined on."""

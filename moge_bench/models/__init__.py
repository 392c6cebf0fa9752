"""Models: every system as a config, and the backbones they are built from."""

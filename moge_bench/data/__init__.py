"""Data sets, shipped and external."""

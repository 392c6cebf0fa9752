"""Runs: what one leaves on disk, where it came from, and how it is executed."""

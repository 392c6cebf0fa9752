"""Mixture-of-experts layers, and how they get into an existing transformer."""

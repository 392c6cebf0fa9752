"""Ablations: grid files to cells, cells to records, records to tables."""

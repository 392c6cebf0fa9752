"""What runs learned, from probes and records: a file for each measurement (docs/analyses.md)."""

"""Studies: grid files to arms and runs, records to contrasts."""

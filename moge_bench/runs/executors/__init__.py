"""Where runs are executed: processes of this machine, or a ray cluster. Shards are for SLURM."""

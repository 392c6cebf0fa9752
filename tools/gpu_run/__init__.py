"""The programs that scripts/gpu_run.sh runs on a machine with a GPU; each is a step of it."""

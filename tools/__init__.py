"""For who changes kernels, from a source checkout: not in the wheel, not used by moge_bench."""

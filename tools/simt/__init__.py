"""The CUDA kernels' source run on the CPU, every access checked: see simt.h for what is caught.

build.py compiles, launch.py loads, kernels.py calls the launchers with torch tensors, cases.py and
checks.py hold them against the float64 reference. `make sanitize` and `make mutants` call
sanitize.py and mutants.py; bugs/ holds one planted bug of each class.
"""

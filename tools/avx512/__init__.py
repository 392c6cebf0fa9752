"""The AVX-512 kernels on a processor without AVX-512."""

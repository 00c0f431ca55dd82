"""CPU kernels: loops compiled by numba, matrix products by torch, on a team of threads of our own."""

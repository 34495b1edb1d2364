"""Kernels: each file reads reference, Triton kernel, autograd, door. Imported as cavmae_ds.kernels."""

"""Triton kernels of the block ops for CUDA tensors; loaded only when a back-end asks for them."""

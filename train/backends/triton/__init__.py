"""The CUDA backend: the operations of a step as Triton kernels on float32 rows in the device's memory.

Every sum has one fixed order and the only atomics are integer ones, so that the same inputs give the same
bits each time. Legend of the whole folder: B rows, D model width, F latents, P pairs.
"""

"""Triton kernels with their launchers; importing a module here imports triton."""

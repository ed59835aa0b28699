"""Tensor operations that the reference constraint and the objectives stand on."""

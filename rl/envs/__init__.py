"""Environments: Gymnasium's, stepped in tensors, and environments that are written in tensors."""

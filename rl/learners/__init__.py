"""Learners: how a policy is improved from rollouts."""

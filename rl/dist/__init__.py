"""Ranks: how they start, meet and end, and what they do together."""

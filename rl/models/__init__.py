"""The agent: its network, its distributions over actions, and 8-bit layers."""

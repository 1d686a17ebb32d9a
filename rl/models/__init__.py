"""Who acts: the network, its distributions over actions, and low precision."""

"""Many processes as one run: how ranks launch, meet and part, and what they do together."""

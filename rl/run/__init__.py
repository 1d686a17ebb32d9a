"""How a run is kept: its folder, its log, its checkpoint, its evaluation."""

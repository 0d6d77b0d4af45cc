"""How a run is kept: files, memory, time, interruption, progress and journals."""

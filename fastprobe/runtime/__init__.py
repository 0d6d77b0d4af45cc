"""The course of a run: files, memory, time, interruption, progress, resumption."""

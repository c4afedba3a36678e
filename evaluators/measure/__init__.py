"""Measured time: slices, blocks, intervals, decisions, networks end to end, steps in place."""

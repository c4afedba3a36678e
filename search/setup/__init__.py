"""Setup: what a run works on, from the configuration to the measured baseline."""

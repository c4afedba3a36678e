"""The loop: agents ask, a pool judges, a journal remembers, the best are verified."""

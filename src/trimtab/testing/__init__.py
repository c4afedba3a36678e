"""Contracts of agents and engines as test classes, for whoever writes one: they need pytest."""

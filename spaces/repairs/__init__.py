"""Repairs: what makes up for what pruning, rounding and factorising took, and the database of layers so made."""

"""Searches: from a configuration to a measured, exported network.

`setup` is all that comes before the search, `loop` the search itself, `finish` what comes after it, `report` what is
shown of it; `run` puts them together, `contest` runs many, `cli` and `api` are the ways in.
"""

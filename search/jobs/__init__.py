"""Searches as jobs of a Ray cluster: what is sent, how it is submitted and followed, and what runs there."""

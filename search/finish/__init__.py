"""The finish: exports of what was found, and measurements of it."""

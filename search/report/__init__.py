"""The report: figures of runs and contests, as values, pages and tables."""

"""The run: configuration, budgets, workers, journal and resume, export, report, the command line."""

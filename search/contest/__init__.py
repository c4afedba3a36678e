"""The contest: agents side by side, over seeds and budgets."""

"""Predicted costs: the steps that will run, the table of their times, bytes, multiplications, memory."""

"""Measuring a model on the paper's tasks."""

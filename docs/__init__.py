"""The documentation, its pictures, and how its reference is read from docstrings."""

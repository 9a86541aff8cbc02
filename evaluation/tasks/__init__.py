"""What is measured: a table of the paper each, and `windows`."""

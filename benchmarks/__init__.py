"""Speed and memory, each figure by a command that stands in the README."""

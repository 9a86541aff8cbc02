"""Speed and memory against what one would otherwise use; `python -m benchmarks.run` measures it all."""

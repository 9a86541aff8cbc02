"""Adapting a Llama with MAGNET's three objectives: arguments -> data -> collator -> objectives -> trainer."""

"""Adapting a base model with MAGNET's three objectives: arguments -> data -> collator -> objectives -> trainer."""

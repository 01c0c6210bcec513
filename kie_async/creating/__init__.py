"""Sends one create at most once, over its own transport. Knows no handle and no other task."""

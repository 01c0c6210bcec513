"""Pays at most once: sends one create and proves what became of it. It knows no handle and no callback."""

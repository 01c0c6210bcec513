"""Polls tasks in flight when the planner says so. Knows no handle, no journal, no callback: finds go to a sink."""

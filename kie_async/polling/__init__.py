"""Polls tasks in flight when the planner says so. Knows no handle or journal: a sink gets the news."""

"""Sends HTTP requests that cost nothing and reads their answers; knows no handle, journal or create."""

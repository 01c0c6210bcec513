"""Uploads local media and downloads results; knows no handle, journal, poll or create."""

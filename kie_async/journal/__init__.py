"""Remembers across crashes what was paid for; knows nothing of sessions, handles, polls or callbacks."""

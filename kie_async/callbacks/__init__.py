"""Receives the service's callbacks; knows nothing of handles, journals or polling: it asks an `Inbox`."""

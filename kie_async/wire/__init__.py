"""The service's language: encodes requests, decodes answers and callbacks. Pure: knows `inputs` only."""

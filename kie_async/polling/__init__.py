"""Asks rarely: polls every tracked task when its plan says so. It knows no handle and no journal."""

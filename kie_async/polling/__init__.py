"""Asks rarely: polls every tracked task when its plan says so. It knows task ids, but no handle and no journal."""

"""Reads the portrait and the voice that come with the package, for a demo that was given none."""

from __future__ import annotations

from importlib.resources import files


def read_portrait() -> bytes:
    """Return a PNG of a friendly face, 320 pixels square."""
    return _read("face.png")


def read_voice() -> bytes:
    """Return a WAV of two seconds that rises and falls like speech."""
    return _read("voice.wav")


def _read(name: str) -> bytes:
    # Not by __file__: the package may be imported from a zip archive.
    return files(__package__).joinpath("media", name).read_bytes()

"""A face and a voice for those who bring none: drawn and sung by the standard library alone."""

from __future__ import annotations

import io
import math
import struct
import wave
import zlib
from array import array

Colour = tuple[int, int, int]

_SIDE = 320

_RATE = 16_000

_LENGTH_S = 2.0

_BACKGROUND: Colour = (94, 160, 196)

_HAIR: Colour = (74, 48, 34)

_SKIN: Colour = (240, 200, 168)

_SHADE: Colour = (222, 178, 146)

_BLUSH: Colour = (236, 172, 146)

_SHIRT: Colour = (238, 118, 84)

_WHITE: Colour = (255, 255, 255)

_DARK: Colour = (52, 36, 36)

_MOUTH: Colour = (170, 58, 62)

# (centre x, centre y, half width, half height, colour), painted in this order.
_ELLIPSES: tuple[tuple[float, float, float, float, Colour], ...] = (
    (160, 345, 122, 82, _SHIRT),
    (160, 262, 34, 34, _SHADE),
    (160, 140, 98, 104, _HAIR),
    (160, 168, 82, 96, _SKIN),
    (160, 84, 66, 26, _HAIR),
    (128, 156, 16, 13, _WHITE),
    (192, 156, 16, 13, _WHITE),
    (129, 157, 8, 10, _DARK),
    (191, 157, 8, 10, _DARK),
    (132, 153, 3, 3, _WHITE),
    (194, 153, 3, 3, _WHITE),
    (160, 184, 9, 6, _SHADE),
    (160, 212, 34, 24, _MOUTH),
    (160, 202, 38, 18, _SKIN),
    (110, 198, 17, 12, _BLUSH),
    (210, 198, 17, 12, _BLUSH),
)

# Two resonances of the mouth in Hz for each syllable, near "hello, here I am", and its pitch.
_SYLLABLES: tuple[tuple[float, float, float], ...] = (
    (530, 1840, 150),
    (570, 840, 172),
    (390, 1990, 165),
    (730, 1090, 140),
    (390, 1990, 158),
    (660, 1720, 132),
    (570, 840, 112),
)


def portrait() -> bytes:
    """Return a PNG of a friendly face."""
    rows = [bytearray(bytes(_BACKGROUND) * _SIDE) for _ in range(_SIDE)]
    for centre_x, centre_y, half_width, half_height, colour in _ELLIPSES:
        top, bottom = max(0, int(centre_y - half_height)), min(_SIDE, math.ceil(centre_y + half_height))
        for y in range(top, bottom):
            height = (y + 0.5 - centre_y) / half_height
            reach = half_width * math.sqrt(max(0.0, 1 - height * height))
            _paint(rows[y], centre_x - reach, centre_x + reach, colour)
    return _encode_png(rows)


def _paint(row: bytearray, left: float, right: float, colour: Colour) -> None:
    """Colour *row* from *left* to *right*; the pixels at the ends in proportion to what is covered."""
    first, last = math.ceil(left), math.floor(right)
    if first > last:
        return
    row[3 * first : 3 * last] = bytes(colour) * (last - first)
    for x, share in ((first - 1, first - left), (last, right - last)):
        for part in range(3):
            below = row[3 * x + part]
            row[3 * x + part] = round(below + (colour[part] - below) * share)


def _encode_png(rows: list[bytearray]) -> bytes:
    """Return a PNG of rows of RGB bytes. https://www.w3.org/TR/png/#5DataRep"""
    header = struct.pack(">IIBBBBB", len(rows[0]) // 3, len(rows), 8, 2, 0, 0, 0)
    pixels = zlib.compress(b"".join(b"\0" + row for row in rows), 9)
    chunks = ((b"IHDR", header), (b"IDAT", pixels), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in chunks
    )


def voice() -> bytes:
    """Return a WAV of two seconds that rises and falls like speech."""
    samples = array("h")
    count = int(_LENGTH_S * _RATE)
    for number, syllable in enumerate(_SYLLABLES):
        start, end = (count * edge // len(_SYLLABLES) for edge in (number, number + 1))
        samples.extend(_syllable(*syllable, count=end - start))
    target = io.BytesIO()
    with wave.open(target, "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(_RATE)
        sound.writeframes(samples.tobytes())
    return target.getvalue()


def _syllable(low_hz: float, high_hz: float, pitch_hz: float, *, count: int) -> array[int]:
    """Return one syllable: the harmonics of a voice, the loudest near the mouth's two resonances."""
    loudness = [
        _near(pitch_hz * harmonic, low_hz, 120) + 0.5 * _near(pitch_hz * harmonic, high_hz, 200)
        for harmonic in range(1, 17)
    ]
    turn = 2 * math.pi * pitch_hz / _RATE
    scale = 22_000 / sum(loudness)
    samples = array("h")
    for at in range(count):
        swell = math.sin(math.pi * at / count) ** 1.5
        # The pitch falls a little within each syllable.
        angle = turn * at * (1 - 0.05 * at / count)
        tone = sum(gain * math.sin(angle * number) for number, gain in enumerate(loudness, 1))
        samples.append(int(scale * swell * tone))
    return samples


def _near(hz: float, resonance_hz: float, width_hz: float) -> float:
    return math.exp(-(((hz - resonance_hz) / width_hz) ** 2)) + 0.02

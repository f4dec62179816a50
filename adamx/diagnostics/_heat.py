"""MATRIX -> PNG: a heat map as an indexed picture, and its colours.

Colours come from curves in OKLab, a space in which equal distances look equally large:
`SEQUENTIAL` gets lighter all the way (dark blue, teal, yellow), so that it also reads
without colour; `DIVERGING` is lightest in its middle. Both are sampled at equal
distances. Entry 0 of a palette is transparent: no value.

Source: Ottosson, "A perceptual color space for image processing", 2020 (the matrices).
"""

import base64
import struct
import zlib

import numpy as np

LEVELS = 254  # of the indices 1 to 255

_TO_CONE = np.array(
    [
        [1.0, 0.3963377774, 0.2158037573],
        [1.0, -0.1055613458, -0.0638541728],
        [1.0, -0.0894841775, -1.2914855480],
    ]
)
_TO_RGB = np.array(
    [
        [4.0767416621, -3.3077115913, 0.2309699292],
        [-1.2684380046, 2.6097574011, -0.3413193965],
        [-0.0041960863, -0.7034186147, 1.7076147010],
    ]
)


def to_srgb(lab: np.ndarray) -> np.ndarray:
    """sRGB in [0, 1] of OKLab colours (n, 3); out of it: no such colour."""
    linear = (lab @ _TO_CONE.T) ** 3 @ _TO_RGB.T
    curved = 1.055 * np.abs(linear) ** (1 / 2.4) - 0.055
    return np.where(linear <= 0.0031308, 12.92 * linear, curved)


def _evenly(points: np.ndarray, count: int) -> np.ndarray:
    """`count` points on a dense polyline, at equal distances along it."""
    lengths = np.linalg.norm(np.diff(points, axis=0), axis=1)
    along = np.concatenate([[0.0], np.cumsum(lengths)])
    at = np.linspace(0, along[-1], count)
    return np.stack([np.interp(at, along, axis) for axis in points.T], axis=1)


def _curve(start: list[float], control: list[float], end: list[float]) -> np.ndarray:
    t = np.linspace(0, 1, 2000)[:, None]
    a, b, c = (np.array(p) for p in (start, control, end))
    return (1 - t) ** 2 * a + 2 * t * (1 - t) * b + t**2 * c


def sequential_lab(count: int = LEVELS) -> np.ndarray:
    """Dark blue, teal, yellow in OKLab."""
    curve = _curve([0.27, 0.02, -0.11], [0.60, -0.16, -0.04], [0.92, -0.03, 0.155])
    return _evenly(curve, count)


def diverging_lab(count: int = LEVELS) -> np.ndarray:
    """Blue, light grey, orange-brown in OKLab."""
    low = _curve([0.40, -0.02, -0.13], [0.75, -0.04, -0.07], [0.95, 0.0, 0.0])
    high = _curve([0.95, 0.0, 0.0], [0.75, 0.07, 0.09], [0.43, 0.09, 0.08])
    return np.concatenate([_evenly(low, count // 2), _evenly(high, count - count // 2)])


def _palette(lab: np.ndarray) -> np.ndarray:
    return np.rint(np.clip(to_srgb(lab), 0, 1) * 255).astype(np.uint8)


SEQUENTIAL = _palette(sequential_lab())
DIVERGING = _palette(diverging_lab())


def quantized(places: np.ndarray) -> np.ndarray:
    """Places in [0, 1] as indices 1 to 255 (clipped); 0 where there is none."""
    levels = 1 + np.rint(np.clip(places, 0, 1) * LEVELS)
    return np.where(np.isfinite(places), levels, 0).astype(np.uint8)


def png(indices: np.ndarray, palette: np.ndarray) -> bytes:
    """An indexed PNG of a (rows, columns) array, as bytes."""
    rows, columns = indices.shape
    lines = np.zeros((rows, columns + 1), np.uint8)  # first byte: no filter
    lines[:, 1:] = indices
    entries = np.concatenate([np.zeros((1, 3), np.uint8), palette[:1], palette])
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", columns, rows, 8, 3, 0, 0, 0)),
        (b"PLTE", entries.astype(np.uint8).tobytes()),
        (b"tRNS", b"\x00"),
        (b"IDAT", zlib.compress(lines.tobytes(), 9)),
        (b"IEND", b""),
    ]
    out = b"\x89PNG\r\n\x1a\n"
    for name, body in chunks:
        check = zlib.crc32(name + body)
        out += struct.pack(">I", len(body)) + name + body + struct.pack(">I", check)
    return out


def data_uri(indices: np.ndarray, palette: np.ndarray) -> str:
    """The picture as an address that holds it."""
    return "data:image/png;base64," + base64.b64encode(png(indices, palette)).decode()


def packed(indices: np.ndarray) -> str:
    """The indices row by row, in base64."""
    return base64.b64encode(np.ascontiguousarray(indices).tobytes()).decode()


def css_gradient(palette: np.ndarray) -> str:
    """The colours from left to right, for a legend."""
    colours = palette[np.linspace(0, len(palette) - 1, 17).astype(int)]
    return ",".join(f"#{r:02x}{g:02x}{b:02x}" for r, g, b in colours.tolist())

"""How surfaces are painted: floors, walls, and the patterns of striped and checkered objects.

Everything is a function of metres on the surface, so a picture of another size samples the same
paint. Floors and walls give a grey factor (P,) on their base colour; ``spread`` (P,) is the width
in metres that one sample covers there, and fine detail fades before it would flicker.
"""

import numpy as np

from clipmill.data.scenes.solids import Floats, Triple

_GRAIN_CELLS = 128


def _make_grain() -> Floats:
    """Smooth, tileable noise (cells, cells) about 0, of standard deviation about 1."""
    rng = np.random.default_rng(20240917)
    spectrum = np.fft.rfft2(rng.standard_normal((_GRAIN_CELLS, _GRAIN_CELLS)))
    fy = np.fft.fftfreq(_GRAIN_CELLS)[:, None]
    fx = np.fft.rfftfreq(_GRAIN_CELLS)[None, :]
    spectrum *= 1 / (0.02 + np.hypot(fx, fy))
    spectrum[0, 0] = 0
    grain = np.fft.irfft2(spectrum, s=(_GRAIN_CELLS, _GRAIN_CELLS))
    even: Floats = (grain / grain.std()).astype(np.float32)
    return even


_GRAIN = _make_grain().ravel()
_TONES = np.random.default_rng(7).uniform(-1, 1, 64).astype(np.float32)


def _grain(x: Floats, y: Floats) -> Floats:
    """Noise with one cell a unit of x and y."""
    column = x.astype(np.int32) & (_GRAIN_CELLS - 1)
    row = y.astype(np.int32) & (_GRAIN_CELLS - 1)
    return _GRAIN.take(row * _GRAIN_CELLS + column)


def _seam(x: Floats, width: float, spread: Floats) -> Floats:
    """1 on whole numbers of x, falling to 0 within ``width``; widened and thinned by ``spread``."""
    blur = width + spread
    off = np.abs(x - np.rint(x))
    seam: Floats = np.maximum(1 - off / blur, 0) * (width / blur)
    return seam


def floor_tone(kind: str, x: Floats, z: Floats, spread: Floats) -> Floats:
    """Grey factor of the floor at (x, z) metres; ``kind`` is a key of FLOORS."""
    tone: Floats
    match kind:
        case "wooden":
            across = x * np.float32(1 / 0.21)
            plank = np.floor(across)
            row = plank.astype(np.int32)
            along = z * np.float32(1 / 1.6) + _TONES.take(row & 63)
            board = row * 7 + np.floor(along).astype(np.int32) * 13
            seam = _seam(across, 0.045, spread * np.float32(1 / 0.21))
            fade = 1 / (1 + 12 * spread)
            grain = _grain(x * 110 + 4096, z * 9 + 4096)
            tone = 1 + 0.17 * _TONES.take(board & 63) + 0.07 * fade * grain
            tone *= 1 - 0.55 * seam
        case "tiled":
            u, v = x * np.float32(1 / 0.55), z * np.float32(1 / 0.55)
            # A square wave whose edges are as soft as a sample is wide.
            blur = spread * np.float32(1 / 0.55) + 0.004
            wave = _square(u, blur) * _square(v, blur)
            grout: Floats = np.maximum(_seam(u, 0.03, blur), _seam(v, 0.03, blur))
            tone = 1 + 0.26 * wave
            tone *= 1 - 0.3 * grout
        case "carpeted":
            fine = _grain(x * 75 + 4096, z * 75 + 4096)
            tone = 1 + 0.16 / (1 + 20 * spread) * fine
        case _:
            coarse = _grain(x * 22 + 4096, z * 22 + 4096)
            tone = 1 + 0.10 / (1 + 5 * spread) * coarse
    return tone


def _square(x: Floats, blur: Floats) -> Floats:
    """Square wave of period 2 between -1 and 1, its edges ``blur`` wide."""
    ramp = (0.5 - np.abs(x - 2 * np.floor(x * 0.5) - 1)) / blur
    wave: Floats = np.minimum(np.maximum(ramp, -1), 1)
    return wave


def wall_tone(kind: str, along: Floats, y: Floats, spread: Floats) -> Floats:
    """Grey factor of a wall, metres along it and above the floor; ``kind`` is a key of WALLS."""
    tone: Floats
    if kind == "brick":
        course = y * np.float32(1 / 0.13)
        row = np.floor(course)
        shifted = along * np.float32(1 / 0.34) + 0.5 * row
        brick = np.floor(shifted).astype(np.int32) * 11 + row.astype(np.int32) * 29
        joint = np.maximum(
            _seam(course, 0.1, spread * np.float32(1 / 0.13)),
            _seam(shifted, 0.04, spread * np.float32(1 / 0.34)),
        )
        tone = 1 + 0.22 * _TONES.take(brick & 63) + 0.75 * joint
        return tone
    tone = 1 + 0.012 * _grain(along * 30 + 4096, y * 30 + 4096)
    # A skirting board, pale with a dark upper edge.
    board = np.clip((0.17 - y) / (spread + 0.004) + 0.5, 0, 1)
    tone += board * (0.35 - 0.9 * _seam((y - 0.17) * 0.5, 0.008, spread))
    return tone


def pattern(material: str, p: Triple, size: float) -> Floats | None:
    """Share (P,) of an object's second colour at points of its frame, or None without one."""
    share: Floats
    if material == "striped":
        wave = p[1] * np.float32(5.0 / size) + p[0] * np.float32(1.7 / size)
        share = (wave - np.floor(wave) > 0.6).astype(np.float32)
        return share
    if material == "checkered":
        # Off the whole numbers, where flat faces would lie on a cell's border.
        scale, shift = np.float32(3.6 / size), np.float32(0.37)
        cells = np.floor(p[0] * scale + shift)
        cells += np.floor(p[1] * scale + shift)
        cells += np.floor(p[2] * scale + shift)
        share = (cells.astype(np.int32) & 1).astype(np.float32)
        return share
    return None

"""The phantom's anatomy: which tissue is where in a synthetic head, and how bright it is on FLAIR.

A head is a function of the position in mm, so every grid shows the same patient. Its parts are signed distances (mm)
with soft edges. What varies at random are sums of a few plane waves (`Waves`), which are defined at every point.
Brightness is relative to white matter = 1. Points are (3, M) float32 arrays.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

BRAIN_MM = np.array([65.0, 80.0, 58.0], np.float32)  # half-axes of the cerebrum

# The lateral ventricle of one side: (|x|, y, z, radius) in mm from the frontal horn to the occipital horn; the temporal
# horn leaves at the atrium.
VENTRICLE = (
    (16, 31, 5, 2.4), (11, 24, 10, 3.8), (5, 9, 14, 3.6), (9, -9, 21, 4.2), (18, -26, 16, 5.2), (25, -37, 9, 5.4),
)  # fmt: skip
HORNS = ((*VENTRICLE, (27, -54, 5, 1.8)), (VENTRICLE[-1], (31, -20, -9, 2.4), (30, 0, -18, 1.8)))
# Centre (|x|, y, z), half-axes (mm) and brightness: caudate, putamen, pallidum, thalamus.
NUCLEI = (
    ((13, 17, 9), (4.5, 11, 10), 1.09), ((26, 6, 2), (5, 15, 10), 1.08),
    ((19, 1, 0), (4, 9, 7), 0.93), ((10, -12, 6), (8, 14, 9), 1.06),
)  # fmt: skip


@dataclass(frozen=True)
class Tissue:
    """What is at M points of a head, (M,) each."""

    brightness: Floats
    brain: Floats  # share that is brain tissue, 0 to 1
    depth: Floats  # mm below the brain's surface
    ventricle_distance: Floats  # mm


@dataclass(frozen=True)
class Waves:
    """A smooth random function of the position: plane waves in random directions, zero mean, unit variance."""

    k: Floats  # (n, 3), rad/mm
    phase: Floats  # (n, 1), rad

    @classmethod
    def draw(cls, rng: np.random.Generator, shortest_mm: float, longest_mm: float, n: int = 8) -> Waves:
        """Draw n waves with wavelengths between the two given."""
        axis = rng.normal(size=(n, 3))
        axis /= np.linalg.norm(axis, axis=1, keepdims=True)
        k = axis * (2 * np.pi / rng.uniform(shortest_mm, longest_mm, (n, 1)))
        return cls(k.astype(np.float32), rng.uniform(0, 2 * np.pi, (n, 1)).astype(np.float32))

    def __call__(self, p: Floats) -> Floats:
        """Return the value (M,) at points (3, M) mm."""
        return np.sin(self.k @ p + self.phase).sum(0) * np.float32((2 / len(self.k)) ** 0.5)

    def distance_to_zero(self, p: Floats) -> Floats:
        """Return the distance (M,) of points (3, M) to the sheets where the function is zero, to first order."""
        angle = self.k @ p + self.phase
        slope = np.linalg.norm(self.k.T @ np.cos(angle), axis=0)
        return np.abs(np.sin(angle).sum(0)) / (slope + 0.25 * np.linalg.norm(self.k))


def ramp(distance: Floats, width: float) -> Floats:
    """Return 0 outside, 1 inside, linear over `width` mm around distance 0: the partial volume of a plane edge."""
    return np.clip(0.5 + distance / np.float32(width), 0, 1)


def _ellipsoid(p: Floats, centre: Any, half: Any, power: float = 2.0) -> Floats:
    """Return the depth (mm) of points (3, M) below an ellipsoid's surface, along the ray from its centre.

    It is negative outside. A power above 2 makes the shape more like a box.
    """
    v = p - np.asarray(centre, np.float32)[:, None]
    scaled = np.abs(v / np.asarray(half, np.float32)[:, None])
    q = (scaled**power).sum(0) ** np.float32(1 / power) + np.float32(1e-3)
    return np.linalg.norm(v, axis=0) * (1 / q - 1)


def _box(p: Floats, centre: Any, half: Any) -> Floats:
    """Return the distance (mm) of points (3, M) to an axis-parallel box or plate, 0 inside."""
    v = np.abs(p - np.asarray(centre, np.float32)[:, None]) - np.asarray(half, np.float32)[:, None]
    return np.linalg.norm(np.maximum(v, 0), axis=0)


def _tube(p: Floats, knots: Any, scale: float = 1.0) -> Floats:
    """Return the depth (mm) of points (3, M) inside a tube through knots (x, y, z, radius); negative outside.

    The radii are multiplied by `scale`.
    """
    best = np.full(p.shape[1], -np.inf, np.float32)
    for start, end in itertools.pairwise(np.asarray(knots, np.float32)):
        along = end[:3] - start[:3]
        v = p - start[:3, None]
        t = np.clip(along @ v / (along @ along), 0, 1)
        radius = scale * (start[3] + t * (end[3] - start[3]))
        best = np.maximum(best, radius - np.linalg.norm(v - along[:, None] * t, axis=0))
    return best


class Head:
    """One patient's anatomy, which is the same in all scans."""

    def __init__(self, rng: np.random.Generator) -> None:
        skew = np.cross(np.eye(3), np.deg2rad(rng.normal(0, 2.5, 3).clip(-6, 6)) / 2)
        rotation = np.linalg.solve(np.eye(3) - skew, np.eye(3) + skew)  # Cayley transform of small angles
        size = rng.normal(1, 0.025, 3).clip(0.94, 1.04) * rng.normal(0.985, 0.015)
        self.to_head = (rotation / size[:, None]).astype(np.float32)  # scanner mm -> head mm
        self.to_scanner = np.linalg.inv(self.to_head).astype(np.float32)
        self.shift = rng.normal(0, 1.5, (3, 1)).astype(np.float32)
        self.warp = [Waves.draw(rng, 90, 180, 5) for _ in range(3)]
        self.ventricles = float(np.exp(rng.normal(0.05, 0.22)).clip(0.75, 1.6))  # factor on their radii
        self.atrophy = float(rng.uniform(0.35, 1.1))  # half-width of sulci, mm
        self.egg = float(rng.uniform(0.01, 0.09))  # how much narrower the head is in front
        self.sulci, self.folia = (Waves.draw(rng, 17, 27, 20), Waves.draw(rng, 24, 50, 6))
        self.depths, self.texture = (Waves.draw(rng, 25, 60), Waves.draw(rng, 14, 40, 10))
        self.skull_mm, self.scalp_mm = (float(rng.uniform(5, 7)), float(rng.uniform(3, 5)))
        self.fat, self.marrow = (float(rng.uniform(0.45, 1.6)), float(rng.uniform(0.15, 0.5)))  # brightness, as below
        self.cortex, self.csf = (float(rng.uniform(1.13, 1.24)), float(rng.uniform(0.16, 0.3)))
        self.patches, self.pial_rim = (0.045, 0.12)  # how far the cortex varies; how bright the fluid is at its surface
        self.rim, self.caps = (float(rng.uniform(0.15, 0.4)), float(rng.uniform(0.1, 0.45)))
        self.vessels, self.plexus = (self._draw_vessels(rng), rng.uniform((1.2, -3, -3), (2.8, 3, 3), (2, 3)))

    def add_look_alikes(self, rng: np.random.Generator) -> None:
        """Make what is no lesion look more like one: grey matter as bright in places, rims of the ventricles and of the
        fluid around the brain, and more vessels that cross a few voxels."""
        self.cortex, self.patches = float(rng.uniform(1.18, 1.32)), float(rng.uniform(0.06, 0.12))
        self.csf, self.pial_rim = float(rng.uniform(0.2, 0.4)), float(rng.uniform(0.2, 0.5))
        self.rim, self.caps = float(rng.uniform(0.25, 0.55)), float(rng.uniform(0.25, 0.6))
        self.vessels = self.vessels + self._draw_vessels(rng) + self._draw_vessels(rng)

    @staticmethod
    def _draw_vessels(rng: np.random.Generator) -> list[tuple[NDArray[np.float64], float]]:
        """Return knots and brightness of bright tubes: arteries in the fissures, veins across white matter."""
        rays = rng.normal(size=(6 + rng.poisson(9), 3)) * (1, 1, 0.6)
        lengths = np.linalg.norm(rays, axis=1)[:, None]
        starts = rays / lengths * BRAIN_MM * rng.uniform(0.45, 0.97, (len(rays), 1)) + (0, 0, 12)
        starts[:6:3] = rng.uniform((-1, 34, -8), (1, 62, 10), (2, 3))  # in front of the corpus callosum
        starts[1:6:3] = rng.uniform((-46, -10, -12), (-36, 26, 2), (2, 3))  # in the Sylvian fissures
        starts[2:6:3] = rng.uniform((36, -10, -12), (46, 26, 2), (2, 3))
        tubes = []
        for start in starts:
            steps = rng.normal((0, 0, 5), (2.2, 2.2, 2), (int(rng.integers(2, 6)), 3))
            line = np.vstack([start, start + np.cumsum(steps, 0)])
            knots = np.column_stack([line, np.full(len(line), rng.uniform(0.8, 1.6))])
            tubes.append((knots, float(rng.uniform(1.3, 1.9))))
        return tubes

    def place(self, scanner_mm: Floats) -> Floats:
        """Return scanner coordinates (3, M) mm in the head's own, in which the parts are defined; bent by the warp."""
        p = self.to_head @ scanner_mm - self.shift
        return p + np.float32(1.6) * np.stack([wave(scanner_mm) for wave in self.warp])

    def tissue(self, p: Floats, soft: float) -> Tissue:
        """Return the tissue at head coordinates (3, M) mm, with edges soft over `soft` mm."""
        f = np.concatenate([np.abs(p[:1]), p[1:]])  # both sides are alike but for the warp, the folds and the vessels
        egg = p.copy()
        egg[0] *= 1 + self.egg * p[1] / BRAIN_MM[1]
        skin = egg.copy()
        skin[2] = np.where(p[2] < 4, 4 + 0.55 * (p[2] - 4), p[2])  # below the middle, towards the neck
        out = -_ellipsoid(skin, (0, 0, 4), BRAIN_MM, 2.3)  # distance from the inside of the skull
        image = self._skull_and_scalp(p, f, out, soft)

        # The brain is computed inside the skull only, because it takes most of the time.
        inside = np.flatnonzero(out < 1.5)
        brightness, brain = np.zeros_like(out), np.zeros_like(out)
        depth, gap = np.full_like(out, -9.0), np.full_like(out, 99.0)
        if inside.size:
            tissue = self._brain(p[:, inside], f[:, inside], egg[:, inside], soft)
            within = ramp(-out[inside], soft)
            brightness[inside], brain[inside] = tissue.brightness * within, tissue.brain * within
            depth[inside], gap[inside] = tissue.depth, tissue.ventricle_distance
        return Tissue(image + brightness, brain, depth, gap)

    def _skull_and_scalp(self, p: Floats, f: Floats, out: Floats, soft: float) -> Floats:
        """Return the brightness of skull with marrow, scalp, eyes, and the dark and bright parts of the skull base."""
        bone = self.skull_mm + 0.3 * self.depths(p) + np.maximum(p[1] - 55, 0) * np.float32(0.06)
        skin = bone + np.float32(self.scalp_mm)
        image = 0.07 * ramp(out, soft) + self.marrow * ramp(np.minimum(out - 0.35 * bone, 0.75 * bone - out), soft)
        fat = self.fat * (1 + 0.15 * self.texture(p))
        low = ramp(-18 - p[2], 12)  # muscle instead of fat towards the neck and the temples
        scalp = fat * (1 - 0.75 * low) + 0.1
        base = low * ramp(out - 2, 3) * (0.35 + 0.1 * self.texture(p))
        image += (scalp - image) * ramp(out - bone, soft) + base * ramp(bone - out, soft)
        image *= ramp(skin - out, soft)
        orbit = np.minimum(_ellipsoid(f, (30, 62, -36), (17, 24, 16)), skin - 1 - out)
        image += ramp(orbit, soft) * ramp(out, soft) * (self.fat - image)
        eye = np.minimum(_ellipsoid(f, (30, 68, -36), (12, 12, 12)), orbit)
        image += ramp(eye, soft) * ramp(out, soft) * (0.2 - image)
        return image * (1 - 0.9 * ramp(np.minimum(_ellipsoid(f, (0, 74, -42), (13, 24, 20)), out), soft))

    def _brain(self, p: Floats, f: Floats, egg: Floats, soft: float) -> Tissue:
        """Return the tissue inside the skull; `f` has both sides folded onto one, `egg` is narrower in front."""
        gap = self._ventricle_distance(f)
        folia = self.folia(p)
        stem, cerebellum = self._hindbrain(p, f, folia)
        hindbrain = np.maximum(stem, cerebellum)
        cerebrum = self._cerebrum(p, f, egg)
        pial = self._folded(p, cerebrum)
        # Cisterns and the tentorium separate the cerebrum from brain stem and cerebellum; nothing folds there.
        below = np.maximum(np.minimum(stem, -9 - p[2]), cerebellum)
        below = np.maximum(below, _ellipsoid(f, (0, 12, -20), (15, 12, 9)) + folia)
        pial, cerebrum = (np.minimum(v, -below - np.float32(0.7 * self.atrophy)) for v in (pial, cerebrum))
        depth, texture = np.maximum(cerebrum, hindbrain), self.texture(p)

        value = self._parenchyma(p, f, pial, gap, texture, soft)
        ripple = np.sin((np.hypot(p[1] + 20, 1.4 * (p[2] + 30)) + 3 * folia) * np.float32(2 * np.pi / 6.5))
        leaves = 1.1 + 0.1 * ripple * ramp(17 - cerebellum, 10) - 0.1 * ramp(cerebellum - 9, 6)
        value = np.where(hindbrain > cerebrum, np.where(stem > cerebellum, 1.0 + 0.03 * texture, leaves), value)
        self._add_look_alikes(value, f, gap, texture)
        share = np.maximum(ramp(pial, soft), ramp(hindbrain, soft))
        fourth_ventricle = _ellipsoid(f, (0, -31, -36), (6 * self.ventricles, 4, 8))
        share *= ramp(gap, soft) * ramp(-fourth_ventricle, soft)

        base = ramp(-24 - p[2], 14) * ramp(-4 - depth, 6) * (0.3 + 0.12 * texture)  # bone and muscle
        fluid = self.csf + self.pial_rim * ramp(2.5 - depth, 3) + 0.05 * texture + base
        septum = np.minimum(0.8 - f[0], -_box(f, (0, 14, 12), (3, 13, 6)) + 0.5)
        share = np.maximum(share, 0.9 * ramp(septum, soft))
        value = fluid + (value - fluid) * share
        self._add_plexus_and_vessels(value, p, f, soft)
        return Tissue(value, share * ramp(pial + 9, 1), depth, gap)

    def _ventricle_distance(self, f: Floats) -> Floats:
        """Return the distance (mm) to the lateral and third ventricles; negative inside."""
        lateral = np.maximum(*(_tube(f, knots, self.ventricles) for knots in HORNS))
        third = np.float32(1.7 * self.ventricles) - _box(f, (0, -6, 1), (0, 7, 6))
        return -np.maximum(lateral, third)

    @staticmethod
    def _hindbrain(p: Floats, f: Floats, folia: Floats) -> tuple[Floats, Floats]:
        """Return the depth (mm) below the surface of the brain stem and of the cerebellum; negative outside."""
        stem = np.minimum(14 - np.hypot(p[0], 1.15 * (p[1] + 17 + 0.12 * (p[2] + 30))), 8 - p[2])
        cerebellum = _ellipsoid(f, (17, -47, -39), (33, 29, 20))
        return stem + folia, cerebellum + folia

    def _cerebrum(self, p: Floats, f: Floats, egg: Floats) -> Floats:
        """Return the depth (mm) below the surface of the cerebrum, without sulci; negative outside."""
        flat = egg.copy()
        flat[2] = np.where(p[2] < 4, 4 + 1.6 * (p[2] - 4) * (1 - 0.25 * ramp(p[1] - 25, 30)), p[2])
        hemispheres = _ellipsoid(flat, (0, 0, 4), BRAIN_MM - np.float32(1.5), 2.3)
        temporal = _ellipsoid(f, (39, 6, -22), (21, 37, 20))
        fissure = np.maximum(_box(f, (0, 0, 70), (0, 99, 43)), 0)  # between the halves, above the corpus callosum
        ends = np.minimum(_box(f, (0, 72, 20), (0, 34, 60)), _box(f, (0, -75, 20), (0, 30, 45)))
        walls = np.minimum(fissure, ends) - np.float32(0.35 * self.atrophy)
        wavy = f.copy()
        wavy[:2] += 3 * self.folia(p)
        sylvian = np.minimum(_box(wavy, (39, 3, 1), (0, 17, 12)), _box(wavy, (52, 17, -2), (13, 0, 13)))
        return np.minimum(np.maximum(hemispheres, temporal), np.minimum(walls, sylvian - np.float32(self.atrophy)))

    def _folded(self, p: Floats, cerebrum: Floats) -> Floats:
        """Return the depth below the surface with its sulci: sheets that run inwards to varying depth."""
        pial, shell = cerebrum.copy(), np.flatnonzero((cerebrum > -3) & (cerebrum < 26))
        if shell.size:
            q = p[:, shell]
            radius = np.linalg.norm(q / BRAIN_MM[:, None], axis=0) + np.float32(0.05)
            # The coordinates of the sheets hardly change with depth, so the sheets are radial.
            sheet = self.sulci.distance_to_zero(q * radius**-0.65) * radius**0.65
            end = np.maximum(12 + 5 * self.depths(q), 6) * np.clip(3 * radius - 1.2, 0, 1)
            width = self.atrophy * (0.75 + 0.5 * np.clip(1 - cerebrum[shell] / (end + 1), 0, 1))
            pial[shell] = np.minimum(pial[shell], np.hypot(sheet, np.maximum(cerebrum[shell] - end, 0)) - width)
        return pial

    def _parenchyma(self, p: Floats, f: Floats, pial: Floats, gap: Floats, texture: Floats, soft: float) -> Floats:
        """Return the brightness of white matter, cortex and nuclei."""
        grey = np.float32(self.cortex) + np.float32(self.patches) * texture
        white = 1 + np.float32(0.02) * texture + 0.07 * np.exp(-np.maximum(gap, 0) / 9) * ramp(-p[1] - 12, 30)
        value = white + (grey - white) * ramp(3.0 - pial, soft + 0.6)
        for centre, half, bright in NUCLEI:
            value += (bright - value) * ramp(_ellipsoid(f, centre, half), 2.5)
        return np.asarray(value, np.float32)

    def _add_look_alikes(self, value: Floats, f: Floats, gap: Floats, texture: Floats) -> None:
        """Add what is bright along the ventricles and no lesion, in place: a rim, and caps at the ends of the horns."""
        tips = np.minimum(_box(f, (16, 32, 6), (1, 1, 4)), _box(f, (27, -55, 6), (1, 1, 3)))
        value += self.rim * np.exp(-(((gap - 0.9) / 1.3) ** 2)) * (0.75 + 0.35 * texture)
        value += self.caps * np.exp(-((tips / 4.5) ** 2))

    def _add_plexus_and_vessels(self, value: Floats, p: Floats, f: Floats, soft: float) -> None:
        """Add the bright choroid plexus and vessels to the brightness, in place."""
        for radius, dx, dy in self.plexus:
            value += 0.95 * ramp(_ellipsoid(f, (23 + dx, -34 + dy, 11), (radius, 1.6 * radius, 4)), soft + 1)
        for knots, bright in self.vessels:
            near = np.flatnonzero((np.abs(p - knots.mean(0)[:3, None].astype(np.float32)) < 22).all(0))
            value[near] += (bright - value[near]) * ramp(_tube(p[:, near], knots), soft)

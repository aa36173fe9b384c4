"""The phantom's lesions: where they lie, how large and bright they are, and how they change between time points."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from wmlsearch.data.phantom_anatomy import BRAIN_MM, VENTRICLE, Floats, Head, Waves, ramp

ML_PER_AXES = 0.72 * 4.19e-3  # ml per mm3 of the product of the half-axes: an ellipsoid, less its uneven outline
PERIVENTRICULAR, JUXTACORTICAL, DEEP, INFRATENTORIAL = range(4)
LOCATION_SHARES = (0.5, 0.22, 0.25, 0.03)  # of the lesions, by location

Law = tuple[float, float, float, float]  # log-normal: median, log-sigma, limits


@dataclass(frozen=True)
class LesionLaws:
    """What the lesions of a cohort are drawn from."""

    load_ml: Law  # of a patient
    radius_mm: Law
    contrast: Law  # brightness above that of the tissue


# Loads as in Lesjak 2017: median 13.9, range 0.3 to 52.2.
EASY_LESIONS = LesionLaws((14.0, 1.1, 0.4, 46.0), (3.8, 0.4, 2.5, 12.0), (0.36, 0.38, 0.16, 0.8))
# Sizes and contrast as in the masks of ms-flair (`python -m benchmarks.phantom_statistics`).
HARD_LESIONS = LesionLaws((9.0, 1.2, 0.5, 46.0), (2.3, 0.5, 1.5, 12.0), (0.3, 0.25, 0.16, 0.6))


@dataclass(frozen=True)
class Lesion:
    """An ellipsoid with an uneven, soft outline, in head coordinates."""

    centre: Floats  # (3,) mm
    axes: Floats  # (3, 3) mm; the rows are the half-axes
    contrast: float  # brightness above that of the tissue
    outline: Waves
    softness_mm: float  # width of the edge

    def fraction(self, p: Floats) -> Floats:
        """Return how much of each point (3, M) in mm is lesion: (M,), 0 to 1."""
        half = np.linalg.norm(self.axes, axis=1)
        q = np.linalg.norm((self.axes / half[:, None] ** 2) @ (p - self.centre[:, None]), axis=0)
        return ramp((1 - q + 0.16 * self.outline(p)) * half.min(), self.softness_mm)


def draw_lesions(rng: np.random.Generator, head: Head, size: float, laws: LesionLaws = EASY_LESIONS) -> list[Lesion]:
    """Return a patient's first lesions, up to a load from a log-normal distribution: mostly small, sometimes large.

    `size` is a factor on their diameters.
    """
    median, sigma, low, high = laws.load_ml
    load_ml = float(np.clip(rng.lognormal(np.log(median), sigma), low, high))
    scale, lesions, volume_ml = (load_ml / median) ** 0.2, [], 0.0
    while volume_ml < load_ml:
        lesion = _draw_lesion(rng, head, scale, size, laws)
        volume_ml += ML_PER_AXES * float(np.prod(np.linalg.norm(lesion.axes, axis=1)))
        lesions.append(lesion)
    return lesions


def follow_up(
    rng: np.random.Generator, head: Head, lesions: list[Lesion], size: float, laws: LesionLaws = EASY_LESIONS
) -> list[Lesion]:
    """Return the lesions some months later: most a little larger, about one in eight smaller, and some new."""
    n = len(lesions)
    factors = np.where(rng.random(n) < 0.12, rng.uniform(0.82, 0.95, n), rng.uniform(1.0, 1.1, n))
    new = [_draw_lesion(rng, head, 0.95, size, laws) for _ in range(1 + int(rng.poisson(1 + 0.04 * len(lesions))))]
    pairs = zip(lesions, factors, strict=True)
    return [replace(lesion, axes=(lesion.axes * factor).astype(np.float32)) for lesion, factor in pairs] + new


def _draw_lesion(rng: np.random.Generator, head: Head, scale: float, size: float, laws: LesionLaws) -> Lesion:
    """Return one lesion; candidates are drawn until one lies in tissue where such lesions occur."""
    middle, spread, smallest, largest = laws.radius_mm
    while True:
        location = int(rng.choice(4, p=LOCATION_SHARES))
        side = rng.choice((-1.0, 1.0))
        radius = float(np.clip(np.exp(rng.normal(np.log(middle), spread)) * scale, smallest, largest)) * size
        direction = rng.normal(size=3)  # of the longest half-axis
        stretch = rng.uniform(1.0, 1.5)
        if location == PERIVENTRICULAR:
            part = int(rng.integers(len(VENTRICLE) - 1))
            knot = np.array(VENTRICLE[part]) + rng.uniform() * (np.array(VENTRICLE[part + 1]) - VENTRICLE[part])
            along = np.array(VENTRICLE[part + 1][:3], float) - VENTRICLE[part][:3]
            direction += (1.6, 0, 0.8)
            # Dawson's fingers: lesions along veins that run at right angles to the ventricle.
            direction -= along * (direction @ along) / (along @ along)
            direction /= np.linalg.norm(direction)
            stretch = rng.uniform(1.3, 2.2)
            centre = knot[:3] + direction * (knot[3] * head.ventricles + stretch * radius * rng.uniform(0.5, 0.95))
        elif location == INFRATENTORIAL:
            centre = rng.normal((12, -38, -38), (10, 10, 8))
        else:
            ray = direction / np.linalg.norm(direction)
            centre = np.abs(ray) * (1, 0, 1) * BRAIN_MM * rng.uniform(0.3, 0.95) + (0, ray[1] * BRAIN_MM[1] * 0.9, 4)
        direction[0] *= side
        centre = (centre * (side, 1, 1)).astype(np.float32)
        if _is_plausible(head, location, centre, radius):
            break
    frame, _ = np.linalg.qr(np.column_stack([direction, rng.normal(size=(3, 2))]))
    half = radius * np.array([stretch, rng.uniform(0.8, 1.1), rng.uniform(0.8, 1.1)])
    return Lesion(
        centre=centre,
        axes=(frame.T * half[:, None]).astype(np.float32),
        contrast=float(np.clip(rng.lognormal(np.log(laws.contrast[0]), laws.contrast[1]), *laws.contrast[2:])),
        outline=Waves.draw(rng, 1.3 * radius + 2, 4 * radius + 3, 9),
        softness_mm=float(rng.uniform(0.8, 2.2)),
    )


def _is_plausible(head: Head, location: int, centre: Floats, radius: float) -> bool:
    """Whether a lesion of this location can have its centre here, by the tissue and the depth in the brain."""
    tissue = head.tissue(centre[:, None], 1.0)
    brain, depth, gap = float(tissue.brain[0]), float(tissue.depth[0]), float(tissue.ventricle_distance[0])
    fits = {
        PERIVENTRICULAR: 0 < gap < 9 + radius,
        JUXTACORTICAL: 2.5 < depth < 8 and gap > 6,
        DEEP: depth > 9 and gap > 5,
        INFRATENTORIAL: depth > 4,
    }[location]
    above_hindbrain = location == INFRATENTORIAL or centre[2] > -10
    beside_midline = location == PERIVENTRICULAR or abs(centre[0]) > 9
    return bool(fits and brain > 0.7 and above_hindbrain and beside_midline)

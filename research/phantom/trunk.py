"""The trunk of the phantom: landmarks, body wall, lungs, bones, table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from phantom.canvas import FAR_MM, Canvas, FloatArray, smooth_path

Point = npt.NDArray[np.float64]

LANDMARKS = {
    "pylorus": (-38, -46, 14), "bulb": (-56, -34, 6), "descending": (-60, -14, -24),
    "knee": (-46, -6, -50), "horizontal": (2, -6, -58), "flexure": (40, -20, -18),
}  # fmt: skip
"""Course of the duodenum, (x, y, z) in mm before a body's own scale and jitter."""

GLAND = (
    (-22, -10, -36, 8.0), (-34, -15, -22, 12.0), (-34, -22, -6, 12.5), (-22, -30, 4, 10.5),
    (-5, -34, 10, 8.0), (16, -32, 16, 9.0), (40, -18, 22, 10.0), (62, 2, 28, 10.0),
    (80, 18, 33, 8.0),
)  # fmt: skip
"""Centreline of the pancreas from the uncinate process to the tail, with radii."""

VESSELS: Mapping[str, tuple[tuple[float, float, float, float], ...]] = {
    "aorta": ((4, 18, 140, 11), (6, 14, 60, 10.5), (7, 10, 0, 9.5), (6, 10, -80, 8.5),
              (5, 12, -95, 8)),
    "ivc": ((-26, 4, 140, 12), (-26, 6, 60, 12), (-21, 10, 0, 11), (-18, 12, -95, 10)),
    "sma": ((6, 0, 8, 4), (5, -12, -4, 4), (3, -22, -30, 3.6), (4, -28, -75, 3), (8, -36, -110, 2)),
    "celiac": ((6, 2, 22, 4), (5, -10, 24, 3.5), (20, -16, 28, 2.8), (50, 2, 34, 2.5)),
    "smv": ((2, -40, -110, 3), (-10, -32, -70, 5), (-13, -25, -30, 6.2), (-11, -22, 2, 7)),
    "portal": ((-11, -22, 2, 7.5), (-22, -19, 20, 7.5), (-42, -12, 44, 7)),
    "splenic": ((-10, -20, 4, 6), (14, -16, 14, 4.6), (36, -1, 22, 4.4), (58, 18, 29, 4.2),
                (84, 30, 38, 3.6), (98, 34, 44, 3)),
    "renal_left": ((-16, 2, -10, 5), (6, -1, -11, 3.6), (28, 20, -8, 4.5), (48, 36, -4, 4)),
    "renal_right": ((-20, 12, -14, 4), (-36, 26, -14, 4.5), (-48, 36, -16, 4)),
}  # fmt: skip
"""Course of the vessels: (x, y, z, radius) in mm."""


@dataclass(frozen=True, eq=False)
class Body:
    """What makes one body different from the next; lengths in mm."""

    scale: Point
    width_mm: float
    depth_mm: float
    fat_mm: float
    fat_front_mm: float
    muscle_hu: float
    fat_hu: float
    bone_hu: float
    vertebra_mm: float
    vertebra_shift_mm: float
    gland: FloatArray
    gland_radii: FloatArray
    gland_tall: float
    bend: Point
    jitter: Mapping[str, Point]
    rng: np.random.Generator

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Body:
        """Draw a body at random."""
        scale = rng.uniform([0.9, 0.88, 0.9], [1.08, 1.1, 1.1])
        fat = rng.uniform(7, 26)
        names = [*LANDMARKS, *VESSELS, "gland"]
        shared = rng.normal(0, 2.5, 3)
        jitter = {name: shared + rng.normal(0, 1.5, 3) for name in names}
        # The tail may climb towards the spleen or sag, the body arch forward more or less.
        bend = np.array([rng.uniform(-16, 22), rng.uniform(-7, 6), rng.uniform(-6, 6)])
        body = cls(
            scale=scale,
            width_mm=float(scale[0] * 134 + fat * 1.15),
            depth_mm=float(scale[1] * 101 + fat * 0.85),
            fat_mm=float(fat),
            fat_front_mm=float(fat * rng.uniform(0.5, 1.1)),
            muscle_hu=float(rng.uniform(48, 68)),
            fat_hu=float(rng.uniform(-112, -95)),
            bone_hu=float(rng.uniform(420, 700)),
            vertebra_mm=float(34 * scale[2]),
            vertebra_shift_mm=float(rng.uniform(0, 34)),
            gland=np.empty((0, 3)),
            gland_radii=np.empty(0),
            gland_tall=float(rng.uniform(1.1, 1.6)),
            bend=bend,
            jitter=jitter,
            rng=rng,
        )
        path = body.course(GLAND, "gland", knot_jitter=2.0)
        swell = 1 + 0.08 * np.sin(np.arange(len(path)) * 0.5 + rng.uniform(0, 6))
        object.__setattr__(body, "gland", path[:, :3])
        object.__setattr__(body, "gland_radii", path[:, 3] * swell * rng.uniform(0.92, 1.08))
        return body

    def at(self, x: float, y: float, z: float, jitter: float = 3.0) -> Point:
        """Return a place in this body, scaled and moved at random by ``jitter`` mm."""
        return np.array([x, y, z]) * self.scale + self.rng.normal(0, 1, 3) * jitter

    def landmark(self, name: str) -> Point:
        """Return a place that organs share."""
        return np.array(LANDMARKS[name]) * self.scale + self.jitter[name]

    def vessel(self, name: str) -> FloatArray:
        """Course of a vessel: (x, y, z, radius) per point."""
        return self.course(VESSELS[name], name)

    def course(
        self,
        knots: tuple[tuple[float, float, float, float], ...],
        name: str,
        knot_jitter: float = 0.8,
    ) -> FloatArray:
        """Lay a smooth path through scaled, bent and moved knots."""
        points = np.asarray(knots, dtype=float)
        towards_tail = np.clip((points[:, 0] - 5) / 75, 0, 1)
        points[:, 2] += self.bend[0] * towards_tail
        points[:, 1] += self.bend[1] * np.sin(np.pi * np.clip((points[:, 0] + 30) / 110, 0, 1))
        points[:, 2] += self.bend[2] * (points[:, 0] < -12)
        points[:, :3] = points[:, :3] * self.scale + self.jitter[name]
        points[:, :3] += self.rng.normal(0, knot_jitter, (len(points), 3))
        return smooth_path(points, 2.5)


def _outline(
    canvas: Canvas, half_width: FloatArray | float, half_depth: FloatArray | float, power: float
) -> FloatArray:
    """Approximate signed distance (mm) of an upright tube with a superelliptic section."""
    u = np.abs(canvas.x) / half_width
    v = np.abs(canvas.y) / half_depth
    k = (u**power + v**power + 1e-6) ** np.float32(1 / power)
    slope = np.hypot((u / k) ** (power - 1) / half_width, (v / k) ** (power - 1) / half_depth)
    return np.asarray((k - 1) / slope, dtype=np.float32)


def paint_trunk(canvas: Canvas, body: Body) -> FloatArray:
    """Table, skin, fat, muscle, ribs, pelvis, lungs and heart."""
    rng = canvas.rng
    z = canvas.axes[0][:, None, None]
    everywhere = canvas.whole
    hips = 10 * np.clip((-z - 60) / 50, 0, 1)
    waist = 6 * np.exp(-(((z + 50) / 40) ** 2))
    skin = _outline(canvas, body.width_mm + hips - waist, body.depth_mm - waist, 2.15)
    _paint_table(canvas, body)
    canvas.paint(everywhere, skin, 20.0, 2.0)
    canvas.paint(everywhere, skin + 2.2, body.fat_hu + canvas.noise(6.0, 5.0), 2.0)
    # Thin at the front, thick at the flanks and the back.
    front = np.clip(-canvas.y / body.depth_mm, 0, 1)
    fat = body.fat_mm + (body.fat_front_mm - body.fat_mm) * front
    wall = skin + fat
    canvas.paint(everywhere, wall, body.muscle_hu + canvas.noise(5.0, 6.0), 1.5)
    _paint_ribs(canvas, body, wall)
    back = np.clip((canvas.y - 40) / 30, 0, 1)
    cavity = wall + rng.uniform(9, 13) + 24 * back * np.exp(-((canvas.x / 80) ** 4))
    canvas.paint(everywhere, cavity, -100 + canvas.noise(8.0, 6.0), 1.5)
    lungs = _paint_chest(canvas, body, cavity)
    _paint_pelvis(canvas, body)
    return np.asarray(np.maximum(cavity, lungs))


def _paint_table(canvas: Canvas, body: Body) -> None:
    y, x = canvas.axes[1][:, None], canvas.axes[2][None, :]
    radius = canvas.rng.uniform(420, 700)
    top = body.depth_mm + 4 - (x**2) / (2 * radius)
    for offset, hu in ((0.0, 40.0), (canvas.rng.uniform(14, 26), 120.0)):
        sheet = np.abs(y - top - offset) - 1.5
        flat = np.broadcast_to(np.maximum(sheet, np.abs(x) - 200), canvas.shape)
        canvas.paint(canvas.whole, flat, hu)


def _paint_ribs(canvas: Canvas, body: Body, wall: FloatArray) -> None:
    """Ribs run down from the back to the front, inside the muscle."""
    box = canvas.box((-FAR_MM, -FAR_MM, -20), (FAR_MM, FAR_MM, FAR_MM))
    x, y, z = canvas.x[box], canvas.y[box], canvas.z[box]
    height = z + 0.55 * (40 - y)
    pitch = 27 * float(body.scale[2])
    gap = 4.4 - np.abs(height - pitch * np.floor(height / pitch) - pitch / 2)
    along = np.maximum(-0.85 * gap, np.abs(wall[box] + 6) - 3.0)
    lowest = np.maximum(-15 - height * 0.6, -20 - z)
    sternum = 35 - np.abs(x)  # cartilage in front, the spine behind
    rib = np.maximum(np.maximum(along, lowest), sternum)
    canvas.paint(box, rib, body.bone_hu * 0.8)
    canvas.paint(box, rib + 2.0, 180.0)


def _paint_chest(canvas: Canvas, body: Body, cavity: FloatArray) -> FloatArray:
    """Lungs above the domes of the diaphragm, and the heart between them."""
    rng = canvas.rng
    lift = rng.uniform(-12, 14)
    dome = np.full(canvas.shape, FAR_MM, dtype=np.float32)
    for centre, radii in (
        ((-62.0, -14.0, 18.0 + lift), (88.0, 92.0, 108.0)),
        ((66.0, -8.0, 12.0 + lift), (84.0, 92.0, 104.0)),
        ((0.0, 5.0, 0.0 + lift), (70.0, 70.0, 122.0)),
    ):
        box, sd = canvas.ellipsoid(np.array(centre) * body.scale, np.array(radii) * body.scale, 20)
        np.minimum(dome[box], sd, out=dome[box])
    floor = 26 + lift - canvas.z
    above = np.maximum(-dome, floor)
    lung = np.maximum(above + 2.5, cavity + 1)
    air = -850 + canvas.noise(7.0, 35.0) + 260 * np.clip(canvas.noise(5.0, 1.0) - 1.6, 0, 3)
    canvas.paint(canvas.whole, np.maximum(above, cavity), 50.0)
    canvas.paint(canvas.whole, lung, air)
    for centre, radii, hu in (
        ((14, -48, 138), (62, 42, 34), -80.0),
        ((16, -46, 142), (54, 36, 30), 55.0),
        ((18, -46, 142), (48, 30, 26), rng.uniform(130, 170)),
        ((2, 28, 130), (30, 24, 70), 30.0),
    ):
        box, sd = canvas.ellipsoid(np.array(centre) * body.scale, np.array(radii) * body.scale)
        canvas.paint(box, np.maximum(np.maximum(sd, cavity[box] + 2), above[box]), hu)
    return np.asarray(-above)


def _paint_pelvis(canvas: Canvas, body: Body) -> None:
    """Iliac wings, flaring outward and forward, below the fourth lumbar vertebra."""
    rng = canvas.rng
    crest = rng.uniform(-96, -80)
    for side in (-1, 1):
        points = []
        for s in np.linspace(0, 1, 14):
            x, y = 52 + 76 * s**0.7, 72 - 92 * s**1.3
            top = crest - 46 * (2 * s - 0.75) ** 2
            for drop in np.arange(0, 80, 5.0):
                points.append([side * (x - 0.25 * drop), y + 0.1 * drop, top - drop])
        cloud = np.asarray(points) * [body.scale[0], body.scale[1], 1]
        cloud = cloud[cloud[:, 2] > canvas.axes[0][0] - 20]
        if not len(cloud):
            continue
        box, sd = canvas.tube(cloud, 6.5, margin_mm=14)
        canvas.paint(box, sd - 10, body.muscle_hu, 3)
        canvas.paint(box, sd, body.bone_hu)
        canvas.paint(box, sd + 2.5, 220 + canvas.noise(4.0, 40, box), 2)


def paint_spine(canvas: Canvas, body: Body) -> None:
    """Vertebrae with canal and processes, the muscles along them and the crura."""
    rng = canvas.rng
    low, high = float(canvas.axes[0][0]) - 40, float(canvas.axes[0][-1]) + 40
    sx, sy, _ = body.scale.tolist()
    for side in (-1, 1):
        _paint_along_spine(canvas, body, side, low, high)
    pitch = body.vertebra_mm
    column, sd = canvas.tube(
        np.array([[0, 42 * sy, h] for h in np.arange(low, high, 6.0)]), 21 * sx, margin_mm=45
    )
    x, y, z = canvas.x[column], canvas.y[column], canvas.z[column]
    radius = np.sqrt((x / (24 * sx)) ** 2 + ((y - 40 * sy) / (18 * sy)) ** 2 + 1e-6)
    shaft = (radius - 1) * 19
    level = np.abs(((z - body.vertebra_shift_mm) % pitch) - pitch / 2) - (pitch / 2 - 4.5)
    canvas.paint(column, shaft, 95 + canvas.noise(5.0, 6, column))
    vertebra = np.maximum(shaft + np.clip(2.5 * np.cos(level / 6), 0, 3), level)
    canvas.paint(column, vertebra, body.bone_hu)
    canvas.paint(column, vertebra + 2.2, 190 + canvas.noise(3.5, 45, column), 2)
    canal = np.hypot(x / 1.25, y - 68 * sy) - 8.5
    arch = np.maximum(np.abs(canal - 4) - 3, level - 2)
    canvas.paint(column, arch, body.bone_hu * 0.9)
    canvas.paint(column, canal, 25 + canvas.noise(6.0, 6, column))
    centre = int(rng.integers(0, 2))
    for k in range(int(low // pitch), int(high // pitch) + 1):
        h = (k + 0.5) * pitch + body.vertebra_shift_mm
        spinous = smooth_path([[0, 78 * sy, h - 4, 3.5], [0, 92 * sy, h - 12 - centre, 4]], 2.0)
        for side in (-1, 1):
            tip = [side * 44 * sx, 64 * sy, h, 3]
            path = smooth_path([[side * 20, 62 * sy, h, 4.5], tip], 2.0)
            box, sd = canvas.tube(path, path[:, 3])
            canvas.paint(box, sd, body.bone_hu * 0.8)
        box, sd = canvas.tube(spinous, spinous[:, 3], z_stretch=2.2)
        canvas.paint(box, sd, body.bone_hu * 0.85)


def _paint_along_spine(canvas: Canvas, body: Body, side: int, low: float, high: float) -> None:
    """Back muscles, psoas (thicker towards the pelvis) and crus of one side."""
    sx, sy, _ = body.scale.tolist()
    texture = 5.0
    heights = np.arange(low, high, 5.0)
    back = np.array([[side * 32 * sx, 80 * sy, h] for h in heights])
    box, sd = canvas.tube(back, 20 * sx)
    canvas.paint(box, sd, body.muscle_hu + canvas.noise(4.0, texture + 8, box), 2)
    psoas = []
    for h in heights[heights < 10]:
        size = float(np.clip((10 - h) / 70, 0, 1))
        psoas.append([side * (26 + 14 * size) * sx, (48 - 6 * size) * sy, h, 5 + 13 * size])
    path = np.asarray(psoas)
    box, sd = canvas.tube(path, path[:, 3])
    canvas.paint(box, sd, body.muscle_hu + 8 + canvas.noise(4.0, texture, box), 1.5)
    crus = np.array([[side * 15, (12 + 0.05 * abs(h)) * sy, h, 5] for h in heights if h > -25])
    box, sd = canvas.tube(crus, 5.0)
    canvas.paint(box, sd, body.muscle_hu + 8)

"""An abdomen in portal-venous CT, drawn organ by organ from random parameters.

Coordinates are (x, y, z) in mm: x to the patient's left, y to the back, z to the head;
the origin lies in front of the first lumbar vertebra, about where the pancreas crosses
the midline. Later organs are painted over earlier ones, so that neighbours touch.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from phantom import trunk
from phantom.canvas import FAR_MM, Box, Canvas, FloatArray, smooth_path
from phantom.trunk import Body

ORGANS = {
    "pancreas": 1,
    "liver": 2,
    "spleen": 3,
    "kidneys": 4,
    "stomach": 5,
    "duodenum": 6,
    "gallbladder": 7,
}
"""Numbers of the organs on the canvas. Wall and contents belong to a hollow one, its own vessels
to the liver; what runs through a gland does not."""


def paint_abdomen(canvas: Canvas) -> npt.NDArray[np.bool_]:
    """Paint a body and its organs."""
    body = Body.draw(canvas.rng)
    cavity = trunk.paint_trunk(canvas, body)
    _paint_liver(canvas, body, cavity)
    _paint_spleen(canvas, body, cavity)
    _paint_mesentery(canvas, body, cavity)
    _paint_small_bowel(canvas, body, cavity)
    _paint_colon(canvas, body, cavity)
    _paint_kidneys(canvas, body)
    trunk.paint_spine(canvas, body)
    _paint_stomach(canvas, body, cavity)
    _paint_duodenum(canvas, body)
    _paint_gallbladder(canvas, body)
    box, inside = _paint_pancreas(canvas, body)
    mask = np.zeros(canvas.shape, dtype=bool)
    mask[box] = inside
    _paint_vessels(canvas, body, mask)
    return mask


def _speckle(canvas: Canvas, box: Box, hu: float, sigma: float) -> FloatArray:
    """Grey value of an organ: its mean with fine and coarse texture."""
    return hu + canvas.noise(5.0, sigma, box) + canvas.noise(25.0, sigma, box)


def _paint_liver(canvas: Canvas, body: Body, cavity: FloatArray) -> None:
    rng = canvas.rng
    lobes = [
        (body.at(-88, -2, 42), (rng.uniform(68, 84), 96, rng.uniform(80, 100))),
        (body.at(-42, -42, 62), (66, 52, 52)),
        (body.at(5, -62, 72), (rng.uniform(42, 78), 34, rng.uniform(28, 42))),
    ]
    hu = rng.uniform(95, 125)
    # The visceral surface is hollow: the hilum and the right kidney press into it.
    hollows = [
        canvas.ellipsoid(body.at(-24, 8, 12), (38, 36, 42), 30),
        canvas.ellipsoid(body.at(-40, -40, -22), (48, 62, 34), 30),
    ]
    hollow = np.full(canvas.shape, FAR_MM, dtype=np.float32)
    for box, sd in hollows:
        np.minimum(hollow[box], sd, out=hollow[box])
    liver = np.full(canvas.shape, FAR_MM, dtype=np.float32)
    for centre, radii in lobes:
        box, sd = canvas.ellipsoid(centre, radii)
        sd = np.maximum(np.maximum(sd, cavity[box] + 1.5), -hollow[box])
        canvas.paint(box, sd, _speckle(canvas, box, hu, 2.5), organ=ORGANS["liver"])
        np.minimum(liver[box], sd, out=liver[box])
    for _ in range(14):
        # Hepatic and portal branches fan out from the hilum.
        start = body.at(-40, -8, 42, 6)
        end = body.at(rng.uniform(-145, 0), rng.uniform(-75, 65), rng.uniform(-25, 110))
        bend = (start + end) / 2 + rng.normal(0, 9, 3)
        path = smooth_path([[*start, 5.5], [*bend, 3.2], [*end, 1.2]], 2.0)
        box, sd = canvas.tube(path, path[:, 3])
        inside = np.maximum(sd, liver[box] + 2)
        canvas.paint(box, inside, hu + rng.uniform(30, 60), 2.0, organ=ORGANS["liver"])


def _paint_spleen(canvas: Canvas, body: Body, cavity: FloatArray) -> None:
    rng = canvas.rng
    centre = body.at(112, 42, 58)
    box, sd = canvas.ellipsoid(centre, (rng.uniform(28, 38), rng.uniform(44, 56), 52))
    sd = np.maximum(sd, cavity[box] + 1.5)
    hu = _speckle(canvas, box, rng.uniform(105, 140), 2.5)
    canvas.paint(box, sd, hu, organ=ORGANS["spleen"])


def _paint_kidneys(canvas: Canvas, body: Body) -> None:
    rng = canvas.rng
    cortex = rng.uniform(150, 200)
    for side, height in ((-1, -14.0), (1, -2.0)):
        centre = body.at(side * 62, 40, height, 4)
        lean = np.array([side * -0.16, 0.12, 0])
        radius = rng.uniform(23, 28)
        length = rng.uniform(46, 58)
        spine = [centre + lean * t + [0, 0, t] for t in np.linspace(-1, 1, 9) * (length - radius)]
        path = np.asarray(spine)
        box, sd = canvas.tube(path, radius, margin_mm=12)
        canvas.paint(box, sd - rng.uniform(3, 9), _speckle(canvas, box, -98, 4), 3)
        kidney = ORGANS["kidneys"]
        canvas.paint(box, sd, _speckle(canvas, box, cortex, 5), organ=kidney)
        pyramids = canvas.noise(13.0, 1.0, box)
        inner = np.maximum(sd + 7, -pyramids * 6)
        canvas.paint(box, inner, cortex - rng.uniform(25, 60), 4, organ=kidney)
        hilum = centre - [side * radius * 0.7, radius * 0.25, 0]
        fat_box, fat = canvas.ellipsoid(hilum, (radius * 0.75, 8, length * 0.5))
        canvas.paint(fat_box, fat, -80.0, 3)
        pelvis_box, pelvis = canvas.ellipsoid(hilum, (radius * 0.5, 4, length * 0.25))
        canvas.paint(pelvis_box, pelvis, rng.uniform(5, 90), 3)


def _contents(canvas: Canvas, box: Box, kind: str, gas_above_mm: float, hu: float) -> FloatArray:
    """Grey values inside a hollow organ: fluid or stool, with gas towards the front."""
    grain = canvas.noise(4.0, 1.0, box)
    if kind == "stool":
        inside = np.asarray(np.clip(-40 + 110 * grain + canvas.noise(9.0, 60, box), -700, 130))
    else:
        inside = np.asarray(hu + 6 * grain)
    gas = np.clip((gas_above_mm - canvas.y[box]) / 1.5 + 0.5, 0, 1)
    return np.asarray(inside + gas * (-940 - inside))


def _paint_hollow(
    canvas: Canvas,
    tube: tuple[Box, FloatArray],
    wall_mm: float,
    kind: str,
    gas_above_mm: float,
    hu: float,
    wall_hu: float = 75.0,
    organ: int = 0,
) -> None:
    box, sd = tube
    canvas.paint(box, sd, _speckle(canvas, box, wall_hu, 4), organ=organ)
    contents = _contents(canvas, box, kind, gas_above_mm, hu)
    canvas.paint(box, sd + wall_mm, contents, organ=organ)


def _paint_small_bowel(canvas: Canvas, body: Body, cavity: FloatArray) -> None:
    """Loops of small bowel within the cavity; in half of the bodies some hold oral contrast."""
    rng = canvas.rng
    positive = rng.uniform() < 0.5
    for _ in range(int(rng.integers(24, 42))):
        start = body.at(rng.uniform(-70, 95), rng.uniform(-75, 5), rng.uniform(-115, 8), 0)
        if start[2] > -35 and start[0] < 35:
            continue
        knots = [start]
        for _ in range(4):
            step = rng.normal(0, 1, 3) * [24, 18, 14]
            knots.append(np.clip(knots[-1] + step, [-85, -85, -125], [110, 5, 10]))
        radius = rng.uniform(8.5, 14.5)
        path = smooth_path(knots, 3.5)
        box, sd = canvas.tube(path, radius * rng.uniform(0.85, 1.1, len(path)))
        sd = np.maximum(sd, cavity[box] + 3)
        hu = rng.uniform(150, 420) if positive and rng.uniform() < 0.6 else rng.uniform(5, 70)
        gas = path[:, 1].mean() - radius * rng.choice([0.2, 3.0], p=[0.25, 0.75])
        _paint_hollow(canvas, (box, sd), 2.5, "fluid", gas, hu, rng.uniform(70, 110))


def _paint_colon(canvas: Canvas, body: Body, cavity: FloatArray) -> None:
    rng = canvas.rng
    front = -body.depth_mm + body.fat_front_mm + 42
    colon: list[list[float]] = [
        [-100, 22, -115], [-108, 18, -70], [-106, 0, -32], [-85, front, -30], [-30, front, -48],
        [35, front, -42], [85, front + 14, 2], [116, 0, 28], [118, 24, -15], [116, 24, -115],
    ]  # fmt: skip
    path = smooth_path([body.at(x, y, z, 6) for x, y, z in colon], 3.5)
    haustra = 1 + 0.13 * np.sin(np.arange(len(path)) * 3.5 / 5)
    radii = rng.uniform(15, 23) * haustra
    box, sd = canvas.tube(path, radii)
    sd = np.maximum(sd, cavity[box] + 3)
    gas_level = front - rng.uniform(-6, 16)
    _paint_hollow(canvas, (box, sd), 2.5, "stool", gas_level, 0.0, 70)


def _paint_mesentery(canvas: Canvas, body: Body, cavity: FloatArray) -> None:
    """Small vessels and nodes in the abdominal fat."""
    rng = canvas.rng
    for _ in range(60):
        start = body.at(rng.uniform(-90, 100), rng.uniform(-75, 10), rng.uniform(-115, 60), 0)
        path = smooth_path(np.cumsum([start, *rng.normal(0, 12, (3, 3))], axis=0), 2.0)
        box, sd = canvas.tube(path, rng.uniform(1.2, 2.6))
        canvas.paint(box, np.maximum(sd, cavity[box] + 2), rng.uniform(60, 150), 2.0)


def _paint_stomach(canvas: Canvas, body: Body, cavity: FloatArray) -> None:
    rng = canvas.rng
    fill = rng.uniform(0.72, 1.1)
    knots: list[list[float]] = [
        [62, 22, 96, 30], [68, -8, 82, 33], [66, -38, 58, 32], [44, -58, 36, 26],
        [12, -64, 24, 19], [-18, -58, 18, 14], [-38, -46, 14, 10],
    ]  # fmt: skip
    path = smooth_path([[*body.at(x, y, z, 5), r * fill] for x, y, z, r in knots], 3.5)
    box, sd = canvas.tube(path, path[:, 3], margin_mm=4)
    sd = np.maximum(sd, cavity[box] + 3)
    hu = rng.uniform(150, 400) if rng.uniform() < 0.35 else rng.uniform(5, 45)
    level = body.at(0, -68, 0)[1] + rng.uniform(-12, 22)
    canvas.paint(box, sd - 2, -95.0, 3)
    wall_mm, wall_hu = rng.uniform(3, 5), rng.uniform(75, 105)
    organ = ORGANS["stomach"]
    _paint_hollow(canvas, (box, sd), wall_mm, "fluid", level, hu, wall_hu, organ)


def _paint_duodenum(canvas: Canvas, body: Body) -> None:
    rng = canvas.rng
    path = smooth_path(
        [
            body.landmark(name)
            for name in ("pylorus", "bulb", "descending", "knee", "horizontal", "flexure")
        ],
        3.0,
    )
    wobble = 1 + 0.12 * np.sin(np.arange(len(path)) / 1.7 + rng.uniform(0, 6))
    box, sd = canvas.tube(path, rng.uniform(9.5, 12.5) * wobble, margin_mm=4)
    canvas.paint(box, sd - 1.5, -90.0, 2)
    hu = rng.choice([rng.uniform(10, 60), rng.uniform(150, 350)], p=[0.75, 0.25])
    level = float(path[:, 1].mean()) - rng.uniform(8, 60)
    wall_hu, organ = rng.uniform(75, 105), ORGANS["duodenum"]
    _paint_hollow(canvas, (box, sd), 3.0, "fluid", level, float(hu), wall_hu, organ)


def _paint_gallbladder(canvas: Canvas, body: Body) -> None:
    rng = canvas.rng
    if rng.uniform() < 0.15:  # removed, as in many a patient
        return
    top, bottom = body.at(-56, -26, 22, 4), body.at(-76, -58, -12, 6)
    path = smooth_path([[*top, 6], [*(top + bottom) / 2, 13], [*bottom, 15]], 3.0)
    box, sd = canvas.tube(path, path[:, 3] * rng.uniform(0.7, 1.15))
    organ = ORGANS["gallbladder"]
    canvas.paint(box, sd - 1.5, 70.0, organ=organ)
    canvas.paint(box, sd, rng.uniform(0, 20), organ=organ)


def _paint_pancreas(canvas: Canvas, body: Body) -> tuple[Box, npt.NDArray[np.bool_]]:
    """Paint the gland: a bent, lobulated tube, thicker towards the head, in its fat."""
    rng = canvas.rng
    box, sd = canvas.tube(body.gland, body.gland_radii, z_stretch=body.gland_tall, margin_mm=8)
    lobules = canvas.noise(7.0, rng.uniform(0.6, 1.3), box) + canvas.noise(16.0, 1.0, box)
    sd = sd + np.clip(lobules, -4, 4)
    # The level set that encloses the wanted volume: the tube's radii need not be exact.
    voxel_ml = float(np.prod(canvas.spacing_mm)) / 1000
    wanted = int(rng.uniform(66, 108) / voxel_ml)
    level = float(np.clip(np.partition(sd.ravel(), wanted)[wanted], -4.0, 4.0))
    sd = sd - np.float32(level)
    # What the lobules cut off is left out, so that nothing of the gland goes unlabelled.
    pieces, _ = ndimage.label(sd < 0)
    sizes = np.bincount(pieces.ravel())
    sizes[0] = 0
    sd = np.where((pieces > 0) & (pieces != sizes.argmax()), np.float32(FAR_MM), sd)
    canvas.paint(box, sd - rng.uniform(0.8, 2.5), _speckle(canvas, box, -90, 4), 2.0)
    hu = _speckle(canvas, box, rng.uniform(90, 118), 4)
    fat = np.clip(canvas.noise(4.5, 1.0, box) - rng.uniform(1.4, 2.6), 0, 1)
    hu -= fat * rng.uniform(60, 120)
    canvas.paint(box, sd, hu)
    return box, sd < 0


def _paint_vessels(canvas: Canvas, body: Body, mask: npt.NDArray[np.bool_]) -> None:
    """Vessels around the gland; where one runs through, it is not pancreas."""
    rng = canvas.rng
    vein, artery = rng.uniform(135, 185), rng.uniform(135, 210)
    for name, hu in (("smv", vein), ("portal", vein), ("splenic", vein), ("sma", artery),
                     ("celiac", artery), ("renal_left", vein), ("renal_right", vein)):  # fmt: skip
        path = body.vessel(name)
        box, sd = canvas.tube(path, path[:, 3], margin_mm=4)
        if name in ("sma", "celiac"):
            canvas.paint(box, sd - 2.5, -90.0, 2)  # arteries run in a sleeve of fat
            mask[box] &= sd > 2.5
        canvas.paint(box, sd, hu)
        mask[box] &= sd > 0
    for name, hu in (("aorta", artery), ("ivc", vein - rng.uniform(0, 25))):
        path = body.vessel(name)
        box, sd = canvas.tube(path, path[:, 3])
        canvas.paint(box, sd - 1.5, -60.0, 2)
        canvas.paint(box, sd, hu)
        mask[box] &= sd > 1.5

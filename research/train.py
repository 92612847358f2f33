"""Train as `napari-pancreas-seg train` does, with teachers or a share of the first weights.

    python research/train.py DATASET -o FOLDER [--start MODEL --start-share 0.5] \\
        [--teacher MODEL ... --teacher-share 0.5]

``--start-share``: how much the model to begin with keeps in the weights of the new one. The mean of
two networks' weights is often better than either where one was trained on from the other (Wortsman
et al. 2022, arXiv:2109.01903). ``--teacher``: masks are mixed with what these models say, see
``teachers.py``.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from napari_pancreas_seg.errors import PancreasSegError
from napari_pancreas_seg.model.bundle import Bundle, load_bundle
from napari_pancreas_seg.training.data.layouts.opening import open_dataset
from napari_pancreas_seg.training.run import Experiment, Split, default_cache, train
from options import settings_of, training_parser
from teachers import TEACHER_SHARE, teaching


def keeping(start: Bundle, share: float) -> Experiment:
    """Mix a share of the first weights into the averaged ones."""
    if not 0 <= share < 1:
        raise PancreasSegError("The share of the model to begin with must be in [0, 1).")
    first = start.network().get_weights()

    def weights(new):
        return [share * a + (1 - share) * b for a, b in zip(first, new, strict=True)]

    return Experiment({"start_share": share}, weights=weights)


def both(one: Experiment, other: Experiment) -> Experiment:
    """Two experiments that change different things."""
    return Experiment(
        {**one.recipe, **other.recipe},
        [*one.models, *other.models],
        one.slices or other.slices,
        one.weights or other.weights,
    )


def main(arguments: list[str] | None = None) -> int:
    """Train, and print where the bundle lies."""
    parser = training_parser(__doc__, steps=6000)
    parser.add_argument("--start", metavar="MODEL", help="whose weights to begin with")
    parser.add_argument("--start-share", type=float, default=0.0)
    parser.add_argument("--teacher", action="append", default=[], metavar="MODEL")
    parser.add_argument("--teacher-share", type=float, default=TEACHER_SHARE)
    parser.add_argument("--learning-rate", type=float, default=1.5e-3)
    parser.add_argument("--averaging", type=float)
    parser.add_argument("--fold", type=int, default=0)
    parser.add_argument("--calibrated-by", metavar="MODEL", help="train on every patient")
    parser.add_argument("--about", type=Path, metavar="JSON", help="fields for the card")
    parser.add_argument("--resume", action="store_true")
    asked = parser.parse_args(arguments)
    changes = {} if asked.averaging is None else {"averaging": asked.averaging}
    settings = settings_of(asked, learning_rate=asked.learning_rate, steps_per_epoch=500, **changes)
    try:
        data = open_dataset(asked.dataset)
        experiment = Experiment()
        if asked.start_share:
            if asked.start is None:
                parser.error("--start-share needs a --start")
            experiment = keeping(load_bundle(asked.start), asked.start_share)
        if asked.teacher:
            by = [load_bundle(teacher) for teacher in asked.teacher]
            taught_by = teaching(by, settings, [*data.labels], asked.teacher_share)
            experiment = both(experiment, taught_by)
        bundle = train(
            data,
            asked.output,
            settings,
            split=None if asked.calibrated_by else Split(asked.folds, asked.fold, asked.seed),
            start=asked.start,
            calibrated_by=asked.calibrated_by,
            negatives=asked.negatives,
            about=json.loads(asked.about.read_text(encoding="utf-8")) if asked.about else None,
            resume=asked.resume,
            cache=default_cache(data, asked.output),
            experiment=experiment,
            log=lambda text: print(text, flush=True),
        )
    except PancreasSegError as error:
        print(error, file=sys.stderr)
        return 1
    print(f"model: {bundle}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

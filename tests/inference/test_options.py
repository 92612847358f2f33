"""What is asked of a segmentation: of the right kind, or one sentence that says what is not."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest

from napari_pancreas_seg.errors import PancreasSegError
from napari_pancreas_seg.inference.result import Options


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"slices": (5,)}, "two whole numbers"),
        ({"slices": (1, 2, 3)}, "two whole numbers"),
        ({"slices": ("a", "b")}, "two whole numbers"),
        ({"slices": "ab"}, "two whole numbers"),
        ({"slices": 5}, "two whole numbers"),
        ({"slices": (0.5, 3)}, "two whole numbers"),
        ({"slices": (5, 3)}, "nothing in slices"),
        ({"box": (1, 2)}, "four whole numbers"),
        ({"box": (1, 5, 7, 7)}, "nothing in box"),
        ({"threshold": "0.5"}, "number between 0 and 1"),
        ({"threshold": float("nan")}, "number between 0 and 1"),
        ({"threshold": 1}, "number between 0 and 1"),
        ({"batch_size": 2.5}, "whole number"),
        ({"batch_size": 0}, "at least 1"),
        ({"first_slice": 3.5}, "whole number"),
        ({"postprocess": "no"}, "True or False"),
        ({"second_look": None}, "True or False"),
        ({"device": None}, "auto, cpu, gpu or gpu"),
        ({"device": "cuda"}, "auto, cpu, gpu or gpu"),
    ],
)
def test_what_makes_no_sense_is_refused(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(PancreasSegError, match=said) as refused:
        Options(**wrong)
    assert str(refused.value).endswith(".")


def test_numpys_numbers_and_lists_become_plain() -> None:
    three = np.int64(3)
    options = Options(
        batch_size=three,
        threshold=np.float32(0.5),
        first_slice=three,
        slices=[three, 9],
        box=np.array([0, 5, 2, 8]),
    )
    assert options == Options("auto", 3, 0.5, True, 3, False, (3, 9), (0, 5, 2, 8))
    assert Options(**json.loads(json.dumps(asdict(options)))) == options

"""The table of peers, and what a detector is told of a slice."""

from types import SimpleNamespace

import numpy as np
import pytest

import peers
from napari_pancreas_seg.errors import PancreasSegError

ASKED = SimpleNamespace(steps=10, folds=5, fold=0)


def test_the_difference_is_paired():
    dice = {"a": 0.5, "b": 0.7}
    found = peers.figures("vnet", dice, {"a": 0.6, "b": 0.8}, ASKED)
    assert found["ours_minus_peer"] == {"n": 2, "mean": 0.1, "low": 0.1, "high": 0.1}
    assert found["summary"]["n"] == 2
    assert "| vnet | 10 | 2 | 0.600 " in peers.table([found]) and "+0.100" in peers.table([found])
    assert peers.table([peers.figures("vnet", dice, {}, ASKED)]).rstrip().endswith("| — |")
    with pytest.raises(PancreasSegError, match="other patients"):
        peers.figures("vnet", dice, {"a": 0.5, "c": 0.5}, ASKED)


def test_those_that_are_done_are_printed(tmp_path, capsys):
    (tmp_path / "vnet.json").write_text(
        peers.json.dumps(peers.figures("vnet", {"a": 0.5}, {}, ASKED))
    )
    assert peers.main(["--table", str(tmp_path)]) == 0
    assert "| vnet |" in capsys.readouterr().out


def test_a_detector_is_given_a_box_around_the_gland():
    torch = pytest.importorskip("torch")
    told = []

    def network(inputs, wanted):
        told.extend(wanted)
        return {"loss": torch.zeros(())}

    target = np.zeros((2, 1, 8, 10), np.float32)
    target[0, 0, 2:5, 3:9] = 1
    peers.Detector(network).loss(torch.zeros((2, 3, 8, 10)), torch.from_numpy(target))
    assert told[0]["boxes"].tolist() == [[3, 2, 9, 5]] and told[0]["masks"].shape == (1, 8, 10)
    assert told[1]["boxes"].shape == (0, 4) and told[1]["masks"].shape == (0, 8, 10)

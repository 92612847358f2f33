"""The table of peers, and what a detector is told of a slice."""

import json

import pytest

import peers_table


def run(network, fold, **dice):
    return {
        "network": network, "what": f"a {network}", "fold": fold, "steps": 1000, "hours": 0.5,
        "patients": dice,
    }  # fmt: skip


def test_the_difference_is_paired_by_patient(tmp_path, capsys):
    found = [
        run("vnet", 0, a=0.5, b=0.7),
        run("attention", 0, b=0.8, a=0.6),
        run("attention", 1, c=0.2),
    ]
    for each in found:
        path = tmp_path / f"{each['network']}-fold{each['fold']}.json"
        path.write_text(json.dumps(each))
    assert peers_table.main([str(tmp_path)]) == 0
    baseline, peer = capsys.readouterr().out.splitlines()[2:]
    assert baseline.startswith("| a attention | 0, 1 | 1,000, 1,000 | 1.0 | 3 | 0.533 ")
    assert baseline.endswith("| 0.200 | — |")
    assert peer.startswith("| a vnet | 0 | 1,000 | 0.5 | 2 | 0.600 ")
    assert peer.endswith("| -0.100 (-0.100 to -0.100) |")


def test_without_the_baseline_nothing_is_compared():
    table = peers_table.table([run("vnet", 0, a=0.5), run("unet", 0, a=0.6)])
    unet, vnet = table.splitlines()[2:]
    assert unet.startswith("| a unet") and unet.endswith("| — |")  # the better one first
    assert vnet.startswith("| a vnet") and vnet.endswith("| — |")


def test_a_detector_is_given_a_box_around_the_gland():
    torch = pytest.importorskip("torch")
    import peers

    target = torch.zeros((8, 10))
    assert peers.wanted(target > 0.5)["boxes"].shape == (0, 4)
    target[2:5, 3:9] = 1
    told = peers.wanted(target > 0.5)
    assert told["boxes"].tolist() == [[3, 2, 9, 5]] and told["masks"].shape == (1, 8, 10)
    assert told["labels"].tolist() == [1]


def test_networks_of_the_comparison_answer_at_full_size():
    torch = pytest.importorskip("torch")
    import peers
    from torch_network import Open

    pictures = torch.rand(2, 3, 32, 48)
    for name in ("attention", "unet", "open", "coarse", "article"):
        with torch.no_grad():
            assert peers.NETWORKS[name].build(3)(pictures)[0].shape == (2, 1, 32, 48)
    half = peers.NETWORKS["coarse"].build(3)
    assert sum(isinstance(gate, Open) for gate in half.gates) == 1

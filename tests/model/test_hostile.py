"""Models from strangers: nothing in them is run, followed, unpacked or believed."""

from __future__ import annotations

import io
import json
import os
import pickle
import re
import stat
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from napari_pancreas_seg.errors import PancreasSegError
from napari_pancreas_seg.model.bundle import (
    Bundle,
    load_bundle,
    load_card,
)

SOURCE = Path(__file__).parents[2] / "src" / "napari_pancreas_seg"


class Payload:
    """Runs a command when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.mark),)


def with_weights(bundle: Bundle, change: Callable[[h5py.File], None]) -> Bundle:
    buffer = io.BytesIO(bundle.weights)
    with h5py.File(buffer, "r+") as file:
        change(file)
    return Bundle(bundle.card, buffer.getvalue())


def replaced(make: Callable[[h5py.Group, str, Any], Any]) -> Callable[[h5py.File], None]:
    """Put something else in the place of the first array."""

    def apply(file: h5py.File) -> None:
        names: list[str] = []
        file.visititems(
            lambda name, found: names.append(name) if isinstance(found, h5py.Dataset) else None
        )
        values = file[names[0]][()]
        del file[names[0]]
        make(file, names[0], values)

    return apply


def external(file: h5py.File, name: str, values: Any) -> None:
    file.create_dataset(name, values.shape, "f4", external=[("/etc/passwd", 0, values.size * 4)])


def virtual(file: h5py.File, name: str, values: Any) -> None:
    layout = h5py.VirtualLayout(values.shape, "f4")
    layout[...] = h5py.VirtualSource("/tmp/other.h5", "x", values.shape)
    file.create_virtual_dataset(name, layout)


WEIGHTS = {
    "external link": lambda f, n, v: f.__setitem__(n, h5py.ExternalLink("/tmp/other.h5", "/x")),
    "soft link": lambda f, n, v: f.__setitem__(n, h5py.SoftLink("/nowhere")),
    "circle": lambda f, n, v: f.__setitem__(n, h5py.SoftLink(f"/{n}")),
    "external storage": external,
    "virtual": virtual,
    "huge": lambda f, n, v: f.create_dataset(n, (1 << 20, 1 << 20), "f4", chunks=(1024, 1024)),
    "other shape": lambda f, n, v: f.create_dataset(n, (*v.shape, 2), "f4"),
    "text": lambda f, n, v: f.create_dataset(n, v.shape, h5py.string_dtype()),
    "references": lambda f, n, v: f.create_dataset(n, v.shape, h5py.ref_dtype),
    "a group": lambda f, n, v: f.create_group(n),
    "NaN": lambda f, n, v: f.create_dataset(n, data=np.full_like(v, np.nan)),
    "missing": lambda f, n, v: None,
}


@pytest.mark.slow
@pytest.mark.parametrize("name", WEIGHTS)
def test_hostile_weights(name: str, tiny_bundle: Path) -> None:
    bundle = with_weights(load_bundle(tiny_bundle), replaced(WEIGHTS[name]))
    with pytest.raises(PancreasSegError, match="do not fit its card"):
        bundle.network()


CARDS = {
    "deep": b'{"name":' + b"[" * 200_000 + b"]" * 200_000 + b"}",
    "huge": b" " * ((1 << 20) + 1) + b"{}",
    "digits": b'{"threshold": ' + b"9" * 100_000 + b"}",
    "no text": b"\xff\xfe\x00",
    "pickle": pickle.dumps({"name": "x"}),
    "null": b"null",
}


@pytest.mark.parametrize("name", CARDS)
@pytest.mark.parametrize("packed", [False, True])
def test_a_hostile_card(name: str, packed: bool, tmp_path: Path) -> None:
    path = tmp_path / "m.zip" if packed else tmp_path
    if packed:
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("card.json", CARDS[name])
    else:
        (tmp_path / "card.json").write_bytes(CARDS[name])
    with pytest.raises(PancreasSegError) as caught:
        load_card(path)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize(
    "change",
    [
        *({"architecture": {"filters": 10**6}}, {"architecture": {"filters": "4"}}),
        *({"architecture": {"filters": 4, "height": 10**9, "width": 48}}, {"windows": []}),
        *({"windows": [[0, 0]]}, {"windows": [[0, float("inf")]]}, {"windows": [["a", "b"]]}),
        *({"frame": {}}, {"frame": {"height": 32, "width": 48, "mm_per_pixel": 0}}),
        *({"temperature": 0}, {"temperature": "hot"}, {"threshold": float("nan")}),
        *({"name": ["a"]}, {"weights_sha256": "../../../etc/passwd"}),
        *({"architecture": {"filters": 4, "head_bias": "abc"}}, {"validation": "good"}),
        *({"architecture": {"filters": 4, "dropout": "0.1"}}, {"confidence": {"slope": None}}),
        *({"architecture": {"filters": 4, "attention": "no"}}, {"confidence": [1, 0]}),
        *({"training": None}, {"training": {"patients": 5}}, {"training": {"recipe": None}}),
        *({"second_look": "yes"}, {"second_look": {"model": "mend"}}),
        {"second_look": {"model": "mend", "mm": 4, "share": 2, "shift": 0}},
        {"second_look": {"model": ["mend"], "mm": 4, "share": 0.4, "shift": 0}},
    ],
    ids=str,
)
def test_a_card_that_asks_for_the_impossible(
    change: dict[str, Any], tiny_bundle: Path, tmp_path: Path
) -> None:
    bundle = load_bundle(tiny_bundle)
    (tmp_path / "card.json").write_text(json.dumps({**bundle.card, **change}))
    (tmp_path / "weights.h5").write_bytes(bundle.weights)
    with pytest.raises(PancreasSegError):
        load_bundle(tmp_path)


@pytest.mark.parametrize("change", [{"members": 32}, {"architecture": {"filters": 256}}], ids=str)
def test_a_network_without_the_weights_for_it_is_never_built(
    change: dict[str, Any], tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def build(*_: Any, **__: Any) -> None:
        pytest.fail("built")

    monkeypatch.setattr("napari_pancreas_seg.model.attention_unet.build", build)
    bundle = load_bundle(tiny_bundle)
    with pytest.raises(PancreasSegError, match="too few for the network"):
        Bundle({**bundle.card, **change}, bundle.weights).network()


def zip_of(tmp_path: Path, tiny_bundle: Path, **changes: Any) -> Path:
    path = tmp_path / "m.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("card.json", "weights.h5"):
            info = zipfile.ZipInfo(changes.get("prefix", "") + name)
            info.external_attr = changes.get("mode", 0o600) << 16
            content = changes.get("content") or (tiny_bundle / name).read_bytes()
            archive.writestr(info, content)
        if "extra" in changes:
            archive.writestr(changes["extra"], b"x")
    return path


@pytest.mark.parametrize("prefix", ["../", "/", "models/", "..\\", "C:"])
def test_members_elsewhere_are_not_looked_for(
    prefix: str, tiny_bundle: Path, tmp_path: Path
) -> None:
    with pytest.raises(PancreasSegError, match="not a model bundle"):
        load_bundle(zip_of(tmp_path, tiny_bundle, prefix=prefix))
    assert [item.name for item in tmp_path.iterdir()] == ["m.zip"]


def test_nothing_is_unpacked_and_links_are_not_followed(tiny_bundle: Path, tmp_path: Path) -> None:
    load_bundle(zip_of(tmp_path, tiny_bundle, extra="../evil"))
    assert [item.name for item in tmp_path.iterdir()] == ["m.zip"]
    secret = tmp_path / "secret.json"
    secret.write_bytes((tiny_bundle / "card.json").read_bytes())
    path = zip_of(tmp_path, tiny_bundle, mode=stat.S_IFLNK | 0o777, content=str(secret).encode())
    with pytest.raises(PancreasSegError, match="not valid JSON"):
        load_card(path)


def test_a_zip_bomb(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "m.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("card.json", b" " * (1 << 24))
    with pytest.raises(PancreasSegError, match="too large"):
        load_card(tmp_path / "m.zip")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no device files")
@pytest.mark.parametrize("name", ["card.json", "weights.h5"])
def test_devices_and_pipes_in_a_folder(name: str, tiny_bundle: Path, tmp_path: Path) -> None:
    for make in (lambda path: path.symlink_to("/dev/zero"), os.mkfifo):
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        folder.mkdir()
        for item in ("card.json", "weights.h5"):
            (folder / item).write_bytes((tiny_bundle / item).read_bytes())
        (folder / name).unlink()
        make(folder / name)
        with pytest.raises(PancreasSegError, match="not a regular file"):
            load_bundle(folder)


@pytest.mark.parametrize("name", ["..", ".", "", "../models", "/etc", "a/../../b", "x\0y"])
def test_names_cannot_leave_the_shelves(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_bundle: Path
) -> None:
    cache = tmp_path / "cache"
    (cache / "models").mkdir(parents=True)
    monkeypatch.setenv("NAPARI_PANCREAS_SEG_CACHE", str(cache))
    monkeypatch.chdir(tmp_path)
    for item in ("card.json", "weights.h5"):  # a model where ".." would lead
        (cache / item).write_bytes((tiny_bundle / item).read_bytes())
    with pytest.raises(PancreasSegError):
        load_card(name)


def test_a_checkpoint_holds_no_pickle(tmp_path: Path) -> None:
    from napari_pancreas_seg.training.fit.loop import Checkpoint

    mark = tmp_path / "was run"
    np.savez(
        Checkpoint(tmp_path).path,
        about=np.array([Payload(mark)], dtype=object),
        v0=np.zeros(3),
        allow_pickle=True,
    )
    with pytest.raises(PancreasSegError, match="not a whole checkpoint"):
        Checkpoint(tmp_path).restore([])
    for content in (b"", b"PK\x05\x06" + bytes(18), pickle.dumps(Payload(mark))):
        Checkpoint(tmp_path).path.write_bytes(content)
        with pytest.raises(PancreasSegError, match="not a whole checkpoint"):
            Checkpoint(tmp_path).restore([])
    assert not mark.exists()


def test_what_comes_through_the_pipe_is_not_unpickled(tmp_path: Path) -> None:
    from napari_pancreas_seg.inference.process import messages

    mark = tmp_path / "was run"
    buffer = io.BytesIO()
    buffer.write(b'{"request": "segment", "hu": {"an array": 1}}\n')
    np.lib.format.write_array(buffer, np.array([Payload(mark)], object), allow_pickle=True)
    buffer.seek(0)
    with pytest.raises(ValueError, match="pickle"):
        messages.receive(buffer)
    assert not mark.exists()


FORBIDDEN = re.compile(
    r"shell\s*=\s*True|\beval\(|(?<!\.)\bexec\(|os\.system|os\.popen|allow_pickle\s*=\s*True"
    r"|pickle\.loads?\(|marshal\.|yaml\.(?!safe_)\w*load|safe_mode\s*=\s*False|extractall"
    r"|unpack_archive|verify\s*=\s*False|CERT_NONE|_create_unverified_context|trust_remote_code"
)


def test_the_program_has_no_such_doors() -> None:
    found = [
        f"{path.relative_to(SOURCE)}: {line.strip()}"
        for path in SOURCE.rglob("*.py")
        for line in path.read_text(encoding="utf-8").splitlines()
        if FORBIDDEN.search(line)
    ]
    assert found == []
    assert FORBIDDEN.search("subprocess.run(x, shell=True)")

"""Models of the user's own, given away and taken in; hostile ones are refused."""

from __future__ import annotations

import hashlib
import io
import json
import pickle
import stat
import zipfile
from pathlib import Path

import pytest

from napari_pancreas_seg.cli import main
from napari_pancreas_seg.errors import PancreasSegError
from napari_pancreas_seg.model import bundle as bundles
from napari_pancreas_seg.model.bundle import list_models, load_bundle, load_card, load_licence
from napari_pancreas_seg.model.library import (
    export_bundle,
    import_bundle,
    remove_model,
)


@pytest.fixture(autouse=True)
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for the user's own models."""
    folder = tmp_path / "own"
    monkeypatch.setenv("NAPARI_PANCREAS_SEG_MODELS", str(folder))
    return folder


@pytest.fixture
def packed(tiny_bundle: Path, tmp_path: Path) -> Path:
    path = tmp_path / "given" / "tiny.zip"
    export_bundle(tiny_bundle, path)
    return path


def files(folder: Path) -> list[str]:
    return sorted(item.name for item in folder.iterdir()) if folder.exists() else []


@pytest.mark.slow
def test_there_and_back(tiny_bundle: Path, packed: Path, own: Path) -> None:
    with zipfile.ZipFile(packed) as archive:
        assert sorted(archive.namelist()) == sorted(
            ["card.json", "weights.h5", "LICENCE.txt", "SHA256SUMS"]
        )
        assert b"BSD-3-Clause" in archive.read("LICENCE.txt")
    entry = import_bundle(packed, "mine")
    assert (entry.name, entry.origin) == ("mine", "own")
    assert files(own) == ["mine.zip"]
    assert load_bundle("mine").weights == load_bundle(tiny_bundle).weights
    assert dict(load_bundle("mine").card) == dict(load_bundle(tiny_bundle).card)
    assert [e.name for e in list_models() if e.origin == "own"] == ["mine"]
    assert {e.name: e.origin for e in list_models()}["mine"] == "own"
    # What was taken in is given away again to the bit, so that its hash can be published.
    again = packed.with_name("again.zip")
    assert export_bundle("mine", again) == hashlib.sha256(packed.read_bytes()).hexdigest()


@pytest.mark.slow
def test_a_licence_travels_along(tiny_bundle: Path, tmp_path: Path) -> None:
    export_bundle(tiny_bundle, tmp_path / "given.zip", licence="You may.\n")
    import_bundle(tmp_path / "given.zip", "mine")
    assert load_licence("mine") == "You may.\n"
    export_bundle("mine", tmp_path / "out.zip")
    assert load_licence(tmp_path / "out.zip") == "You may.\n"
    assert load_licence(tiny_bundle) is None


def test_the_bundled_model_has_its_licence_with_it(tmp_path: Path) -> None:
    export_bundle("default", tmp_path / "default.zip")
    text = load_licence(tmp_path / "default.zip")
    assert text is not None and "Redistribution and use" in text and "CC BY 3.0" in text


@pytest.mark.slow
def test_nothing_is_replaced_unless_told(tiny_bundle: Path, packed: Path, own: Path) -> None:
    import_bundle(tiny_bundle, "mine")
    before = (own / "mine.zip").read_bytes()
    for name in ("mine", "Mine"):
        with pytest.raises(PancreasSegError, match="already"):
            import_bundle(tiny_bundle, name)
        with pytest.raises(PancreasSegError, match="already"):
            import_bundle(packed, name)
    with pytest.raises(PancreasSegError, match="not one of your own"):
        import_bundle(tiny_bundle, "default", overwrite=True)
    with pytest.raises(PancreasSegError, match="exists already"):
        export_bundle(tiny_bundle, packed)
    assert (own / "mine.zip").read_bytes() == before
    export_bundle(tiny_bundle, packed, licence="other", overwrite=True)
    import_bundle(packed, "mine", overwrite=True)
    assert load_licence("mine") == "other"
    assert files(own) == ["mine.zip"]


@pytest.mark.parametrize(
    "name",
    [
        *("", ".", "..", "../up", "a/b", "a\\b", ".hidden", "con", "NUL.x", "x.", "x.zip", "a\nb"),
        *("default", "mend", "Mend"),  # the package's own
    ],
)
def test_names_that_are_none(name: str, tiny_bundle: Path, own: Path) -> None:
    with pytest.raises(PancreasSegError, match="name"):
        import_bundle(tiny_bundle, name)
    assert files(own) == []


def test_a_network_that_segments_nothing_is_not_kept(tmp_path: Path, own: Path) -> None:
    bundle = load_bundle("mend", "mend")
    packed = tmp_path / "mend.zip"
    export_bundle(bundle, packed)
    with pytest.raises(PancreasSegError, match="made to mend, not to segment"):
        import_bundle(packed, "mine")
    assert files(own) == []


@pytest.mark.slow
def test_removing(tiny_bundle: Path, own: Path) -> None:
    import_bundle(tiny_bundle, "mine")
    kept = own / "by hand"
    kept.mkdir()
    for item in tiny_bundle.iterdir():
        (kept / item.name).write_bytes(item.read_bytes())
    with pytest.raises(PancreasSegError, match="as a folder"):
        import_bundle(tiny_bundle, "by hand", overwrite=True)
    (kept / "README.md").write_text("how I made it", encoding="utf-8")
    (kept / "weights.0123.h5").write_bytes(b"of a write that was cut off")
    with pytest.raises(PancreasSegError, match=r"README\.md"):
        remove_model("by hand")
    assert (kept / "card.json").exists(), "all of it, or nothing"
    (kept / "README.md").unlink()
    for name in ("mine", "by hand"):
        remove_model(name)
    assert files(own) == []
    for name in ("mine", "default", "../own"):
        with pytest.raises(PancreasSegError, match="not one of your own"):
            remove_model(name)


def changed(path: Path, change: object = None, **members: bytes | None) -> Path:
    """The zip with some members replaced, or left out."""
    with zipfile.ZipFile(path) as archive:
        found = {name: archive.read(name) for name in archive.namelist()}
    for name, content in members.items():
        found[name] = content  # type: ignore[assignment]
    target = path.with_name("changed.zip")
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in found.items():
            if content is not None:
                archive.writestr(name, content)
    return target


HOSTILE: dict[str, dict[str, bytes | None]] = {
    "above": {"../evil.py": b"x"},
    "absolute": {"/tmp/evil.py": b"x"},
    "backslashes": {"..\\evil.py": b"x"},
    "folder": {"sub/card.json": b"{}"},
    "code": {"model.py": b"print(1)"},
    "pickle": {"weights.pkl": pickle.dumps({})},
    "keras": {"model.keras": b"x"},
    "no card": {"card.json": None},
    "no weights": {"weights.h5": None},
    "other weights": {"weights.h5": b"x", "SHA256SUMS": None},
    "pickled card": {"card.json": pickle.dumps({}), "SHA256SUMS": None},
    "bomb": {"card.json": b" " * (1 << 24), "SHA256SUMS": None},
    "licence bomb": {"LICENCE.txt": b" " * (1 << 24)},
    "licence is no text": {"LICENCE.txt": b"\xff\xfe\xff", "SHA256SUMS": None},
    "wrong sums": {"SHA256SUMS": b"0" * 64 + b"  weights.h5\n"},
    "sums of nothing": {"SHA256SUMS": b"0" * 64 + b"  ../../etc/passwd\n"},
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_zip(name: str, packed: Path, own: Path) -> None:
    path = changed(packed, **HOSTILE[name])
    before = files(path.parent)
    with pytest.raises(PancreasSegError) as caught:
        import_bundle(path, "mine")
    assert len(str(caught.value).splitlines()) == 1
    assert files(own) == []
    assert files(path.parent) == before


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFCHR, stat.S_IFIFO])
def test_links_and_devices_in_a_zip(kind: int, packed: Path, own: Path) -> None:
    path = packed.with_name("link.zip")
    with zipfile.ZipFile(packed) as archive, zipfile.ZipFile(path, "w") as out:
        for name in archive.namelist():
            info = zipfile.ZipInfo(name)
            info.external_attr = (kind if name == "LICENCE.txt" else stat.S_IFREG) << 16
            out.writestr(info, archive.read(name))
    with pytest.raises(PancreasSegError, match="no part of a model"):
        import_bundle(path)
    assert files(own) == []


def test_a_member_that_comes_twice(packed: Path, own: Path) -> None:
    with (
        pytest.warns(UserWarning, match="Duplicate"),
        zipfile.ZipFile(packed, "a") as archive,
    ):
        archive.writestr("card.json", b"{}")
    with pytest.raises(PancreasSegError, match="twice"):
        import_bundle(packed)


def test_what_is_no_zip(tmp_path: Path, packed: Path) -> None:
    damaged = tmp_path / "cut.zip"
    damaged.write_bytes(packed.read_bytes()[:-100])
    empty = tmp_path / "empty.zip"
    empty.write_bytes(b"")
    for path in (damaged, empty, tmp_path / "none.zip"):
        with pytest.raises(PancreasSegError):
            import_bundle(path)


@pytest.mark.slow
def test_the_hash_that_came_along_is_compared(packed: Path, own: Path) -> None:
    with pytest.raises(PancreasSegError, match="SHA-256"):
        import_bundle(packed, sha256="0" * 64)
    right = hashlib.sha256(packed.read_bytes()).hexdigest()
    assert import_bundle(packed, sha256=f" {right.upper()} ").name == "tiny"


@pytest.mark.slow
def test_a_folder_is_taken_in_as_a_zip_is(packed: Path, own: Path) -> None:
    """Unpacked, it may lie among other files, but not lead to them."""
    folder = packed.with_name("folder")
    with zipfile.ZipFile(packed) as archive:
        archive.extractall(folder)
    (folder / ".DS_Store").write_bytes(b"x")
    with pytest.raises(PancreasSegError, match="is a folder"):
        import_bundle(folder, sha256="0" * 64)
    licence = (folder / "LICENCE.txt").read_bytes()
    (folder / "LICENCE.txt").write_bytes(b"You may do anything.")
    with pytest.raises(PancreasSegError, match="SHA256SUMS says"):
        import_bundle(folder)
    (folder / "LICENCE.txt").unlink()
    (packed.with_name("secret")).write_bytes(licence)
    try:
        (folder / "LICENCE.txt").symlink_to(packed.with_name("secret"))
    except OSError:
        pytest.skip("no links here")
    with pytest.raises(PancreasSegError, match="is a link"):
        import_bundle(folder)
    assert files(own) == []
    (folder / "LICENCE.txt").unlink()
    (folder / "LICENCE.txt").write_bytes(licence)
    assert import_bundle(folder).name == "tiny"
    with zipfile.ZipFile(own / "tiny.zip") as archive:
        assert ".DS_Store" not in archive.namelist()


def test_a_network_that_does_not_fit_is_not_kept(tiny_bundle: Path, own: Path) -> None:
    """The card asks for other weights than there are: found by trying."""
    bundle = load_bundle(tiny_bundle)
    card = {**bundle.card, "architecture": {"filters": 8, "height": 32, "width": 48}}
    path = own.with_name("x.zip")
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr("card.json", json.dumps(card))
        archive.writestr("weights.h5", bundle.weights)
    path.write_bytes(content.getvalue())
    with pytest.raises(PancreasSegError, match="do not fit"):
        import_bundle(path)
    assert files(own) == []


@pytest.mark.slow
def test_a_full_disk_leaves_nothing(
    tiny_bundle: Path, own: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: zipfile.ZipFile, *args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(bundles.zipfile.ZipFile, "writestr", full)
    with pytest.raises(PancreasSegError, match="disk is full"):
        import_bundle(tiny_bundle, "mine")
    assert files(own) == []


@pytest.mark.slow
def test_the_commands(
    tiny_bundle: Path, tmp_path: Path, own: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "out.zip"
    assert main(["bundle", "export", str(tiny_bundle), "-o", str(path)]) == 0
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert digest in capsys.readouterr().out
    assert main(["bundle", "import", str(path), "--name", "mine", "--sha256", digest]) == 0
    assert "mine" in capsys.readouterr().out
    assert load_card("mine")["name"] == "tiny"
    assert main(["bundle", "import", str(path), "--name", "mine"]) == 1
    assert "--overwrite" in capsys.readouterr().err
    onnx_file = tmp_path / "m.onnx"
    pytest.importorskip("onnxruntime")
    assert main(["bundle", "onnx", "mine", "-o", str(onnx_file)]) == 0
    assert "differs by at most" in capsys.readouterr().out
    assert main(["bundle", "remove", "mine"]) == 0
    assert files(own) == []

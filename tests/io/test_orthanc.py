"""CT out of an Orthanc by DICOMweb, DICOM-SEG and report into it, and all of it back."""

from __future__ import annotations

import io
import json
import re
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import highdicom as hd
import numpy as np
import pydicom
import pytest
import requests
from dicom_series import body, write_series
from requests.adapters import HTTPAdapter
from urllib3.util.retry import Retry

from napari_pancreas_seg.io import load_ct, load_mask, report_path, save_mask
from napari_pancreas_seg.io.dicom.report import write_report
from napari_pancreas_seg.mask.measures import measure

ORTHANC = shutil.which("Orthanc")
PLUGIN = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        ORTHANC is None or not PLUGIN.exists(),
        reason="Orthanc is missing (Debian: orthanc, orthanc-dicomweb)",
    ),
]


@pytest.fixture
def web(tmp_path: Path) -> Iterator[str]:
    """Address of an Orthanc of our own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = {
        "Name": "test",
        "StorageDirectory": str(tmp_path / "orthanc"),
        "IndexDirectory": str(tmp_path / "orthanc"),
        "DicomServerEnabled": False,
        "HttpPort": port,
        "RemoteAccessAllowed": False,
        "Plugins": [str(PLUGIN)],
        "DicomWeb": {"Enable": True},
    }
    (tmp_path / "orthanc.json").write_text(json.dumps(settings))
    with open(tmp_path / "orthanc.log", "wb") as log:
        process = subprocess.Popen(
            [ORTHANC, str(tmp_path / "orthanc.json")], stdout=log, stderr=subprocess.STDOUT
        )
    try:
        address = f"http://127.0.0.1:{port}"
        with requests.Session() as session:  # until it listens
            session.mount("http://", HTTPAdapter(max_retries=Retry(10, backoff_factor=0.1)))
            session.get(f"{address}/system", timeout=60).raise_for_status()
        yield f"{address}/dicom-web"
    finally:
        process.terminate()
        process.wait(timeout=60)


def store(web: str, files: list[Path]) -> None:
    """STOW-RS."""
    parts = [
        b"--part\r\nContent-Type: application/dicom\r\n\r\n" + file.read_bytes() + b"\r\n"
        for file in files
    ]
    kind = 'multipart/related; type="application/dicom"; boundary=part'
    answer = requests.post(
        f"{web}/studies",
        data=b"".join([*parts, b"--part--"]),
        headers={"Content-Type": kind, "Accept": "application/dicom+json"},
        timeout=60,
    )
    answer.raise_for_status()
    assert not answer.json().get("00081198", {}).get("Value")  # Failed SOP Sequence
    assert len(answer.json()["00081199"]["Value"]) == len(files)


def fetch(web: str, study: str, series: str) -> list[bytes]:
    """WADO-RS: the files of a series, as they were stored."""
    kind = 'multipart/related; type="application/dicom"; transfer-syntax=*'
    answer = requests.get(
        f"{web}/studies/{study}/series/{series}", headers={"Accept": kind}, timeout=60
    )
    answer.raise_for_status()
    (boundary,) = re.findall(r'boundary="?([^";]+)', answer.headers["Content-Type"])
    parts = answer.content.split(b"--" + boundary.encode())[1:-1]
    return [part.partition(b"\r\n\r\n")[2].removesuffix(b"\r\n") for part in parts]


def test_a_ct_goes_out_and_its_segmentation_and_report_come_in(web: str, tmp_path: Path) -> None:
    series = write_series(tmp_path / "scanner", body((64, 56, 20)))
    store(web, list(series.files))
    header = pydicom.dcmread(series.files[0], stop_before_pixels=True)
    study = header.StudyInstanceUID
    fetched = tmp_path / "fetched"
    fetched.mkdir()
    for number, content in enumerate(fetch(web, study, header.SeriesInstanceUID)):
        (fetched / f"{number}.dcm").write_bytes(content)
    assert {f.read_bytes() for f in fetched.iterdir()} == {f.read_bytes() for f in series.files}

    ct = load_ct(fetched)
    np.testing.assert_array_equal(ct.hu, load_ct(series.folder).hu)
    mask = np.zeros(ct.grid.shape, np.uint8)
    mask[4:15, 20:34, 12:50] = 1
    seg = save_mask(mask, ct, tmp_path / "seg.dcm")
    report = write_report(mask, ct, seg, report_path(seg))
    store(web, [seg, report])

    for path in (seg, report):
        made = pydicom.dcmread(path)
        (back,) = fetch(web, study, made.SeriesInstanceUID)
        assert pydicom.dcmread(io.BytesIO(back)) == made
        (tmp_path / f"back_{path.name}").write_bytes(back)
    found, _ = load_mask(tmp_path / "back_seg.dcm")
    np.testing.assert_array_equal(found, mask)
    content = hd.sr.srread(tmp_path / "back_seg_report.dcm").content
    (group,) = content.get_volumetric_roi_measurement_groups()
    volume, *_ = group.get_measurements()
    assert volume.value == pytest.approx(measure(mask, ct)["volume_ml"])
    seg_uid = pydicom.dcmread(seg, stop_before_pixels=True).SOPInstanceUID
    assert group.referenced_segment.referenced_sop_instance_uid == seg_uid

    query = {"Accept": "application/dicom+json"}
    known = requests.get(f"{web}/studies/{study}/series", headers=query, timeout=60).json()
    assert sorted(one["00080060"]["Value"][0] for one in known) == ["CT", "SEG", "SR"]
    patients = requests.get(f"{web}/studies", headers=query, timeout=60).json()
    assert [one["00100020"]["Value"] for one in patients] == [[header.PatientID]]

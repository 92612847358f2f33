"""What runs on the workers of a Dask cluster. Importing it imports `distributed`."""

from __future__ import annotations

import os
import platform
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from distributed import WorkerPlugin, get_worker

from napari_pancreas_seg._version import __version__
from napari_pancreas_seg.cohort.cases import Case
from napari_pancreas_seg.cohort.steps import CaseInWork, CaseResult, CaseSegmenter
from napari_pancreas_seg.errors import PancreasSegError
from napari_pancreas_seg.inference import segment as segmentation
from napari_pancreas_seg.inference.options import OutputOptions
from napari_pancreas_seg.inference.result import Options
from napari_pancreas_seg.inference.saving import card_sha256
from napari_pancreas_seg.io.files import check_folder
from napari_pancreas_seg.model.bundle import Bundle


class ModelPlugin(WorkerPlugin):
    """Holds a model in each worker's process, loaded for its first case; it brings the bundle."""

    def __init__(self, bundle: Bundle, device: str) -> None:
        self.bundle, self.device = bundle, device
        # A card holds the hash of its weights. Another threshold or temperature with the same
        # weights is another model, and must not meet the one that a worker still holds.
        digest = card_sha256(bundle.card)[:16]
        self.name = f"napari-pancreas-seg {__version__} {digest} {device}"

    def setup(self, worker: Any) -> None:
        """Prepare; nothing heavy is loaded before there is a case."""
        self._loaded: segmentation.LoadedModel | None = None
        # A worker's threads read and write side by side; the network takes all there is.
        self.turn = threading.Lock()

    def network(self) -> segmentation.LoadedModel:
        """The model, loaded."""
        if self._loaded is None:
            self._loaded = segmentation.LoadedModel(self.bundle, self.device)
        return self._loaded


@dataclass(frozen=True)
class ClusterTask:
    """A case for a worker; `fresh`: nothing was in the way at first."""

    case: Case
    options: Options
    outputs: OutputOptions
    plugin: str
    fresh: bool


def run_case(task: ClusterTask) -> CaseResult:
    """Segment a case on a worker; reading and writing do not wait for the network."""
    worker = get_worker()
    plugin: ModelPlugin = worker.plugins[task.plugin]
    threads = max(1, int(worker.state.nthreads))
    # Of another attempt at this case, what is complete is kept, and what is torn is replaced;
    # what anyone else has put there meanwhile is in the way, as it would be on one machine.
    outputs = replace(task.outputs, resume=task.outputs.resume or task.fresh)
    segmenter = CaseSegmenter(
        plugin.network, plugin.bundle.card, task.options, outputs, beside=threads - 1
    )
    work = CaseInWork(0, task.case)
    segmenter.read(work, alone=threads == 1)
    with plugin.turn:
        if work.volume is not None:
            segmenter.compute(work)
        elif work.result is None:  # no room beside what the other threads hold
            segmenter.all_steps(work)
    if work.result is None:
        segmenter.write(work)
    assert work.result is not None
    return work.result


def inspect_worker(
    folders: Sequence[str], token: str, output: str, plugin: str, dask_worker: Any = None
) -> Mapping[str, Any]:
    """Say who a worker is, which folder it does not see, and whether it has the model."""
    unseen = next((folder for folder in folders if not os.path.exists(folder)), None)
    if unseen is None and not os.path.exists(token):
        unseen = output
    refused = None
    if unseen is None:
        try:
            check_folder(Path(output))
        except PancreasSegError as error:
            refused = str(error)
    return {
        "version": __version__,
        "python": python_version(),
        "unseen": unseen,
        "refused": refused,
        "ready": dask_worker is not None and plugin in dask_worker.plugins,
    }


def python_version() -> str:
    """Python's version as in 3.12: it must agree on all machines."""
    return ".".join(platform.python_version_tuple()[:2])

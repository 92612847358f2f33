"""What runs on the workers of a Dask cluster. Importing it imports `distributed`."""

from __future__ import annotations

import os
import platform
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distributed import WorkerPlugin, get_worker

from napari_pancreas_seg import __version__
from napari_pancreas_seg.cohort import run as cohort
from napari_pancreas_seg.cohort.cases import Case
from napari_pancreas_seg.cohort.overlap import Ended
from napari_pancreas_seg.cohort.resume import OutputOptions
from napari_pancreas_seg.errors import PancreasSegError
from napari_pancreas_seg.inference.result import Options
from napari_pancreas_seg.inference.saving import card_sha256
from napari_pancreas_seg.io.files import check_folder
from napari_pancreas_seg.model.bundle import Bundle

if TYPE_CHECKING:
    from napari_pancreas_seg.inference.segment import LoadedModel

__all__ = ["ClusterCase", "NetworkPlugin", "look_around", "python_version", "run_case"]


class NetworkPlugin(WorkerPlugin):
    """Holds a model in each worker's process, loaded for its first case.

    Parameters
    ----------
    bundle : Bundle
        The model; it travels to the workers, so they need no copy of its files.
    device : str
        Where its network runs.
    localiser : Bundle, optional
        The model that finds the gland for it, if it needs one.
    """

    def __init__(self, bundle: Bundle, device: str, localiser: Bundle | None = None) -> None:
        self.bundle, self.device, self.localiser = bundle, device, localiser
        # A card holds the hash of its weights. Another threshold or temperature with the same
        # weights is another model, and must not meet the one that a worker still holds.
        used = [bundle] if localiser is None else [bundle, localiser]
        digest = " ".join(card_sha256(each.card)[:16] for each in used)
        self.name = f"napari-pancreas-seg {__version__} {digest} {device}"

    def setup(self, worker: Any) -> None:
        """Make ready; nothing heavy happens before there is a case."""
        self._loaded: LoadedModel | None = None
        # A worker's threads read and write side by side; the network takes all there is.
        self.turn = threading.Lock()

    def network(self) -> LoadedModel:
        """The model, loaded."""
        from napari_pancreas_seg.inference.segment import LoadedModel

        if self._loaded is None:
            self._loaded = LoadedModel(self.bundle, self.device, self.localiser)
        return self._loaded


@dataclass(frozen=True)
class ClusterCase:
    """All that a worker must know of a case.

    Parameters
    ----------
    case : Case
        The case, with absolute paths.
    options : Options
        How to segment it.
    wanted : OutputOptions
        What to write.
    plugin : str
        Name of the plugin that holds the model.
    fresh : bool
        Whether nothing was in the way when the case was handed out.
    resume : bool
        Whether what an earlier run has completed is left alone.
    """

    case: Case
    options: Options
    wanted: OutputOptions
    plugin: str
    fresh: bool
    resume: bool


def run_case(task: ClusterCase) -> cohort.CaseResult:
    """Segment a case on a worker; reading and writing do not wait for the network.

    Parameters
    ----------
    task : ClusterCase
        The case.

    Returns
    -------
    CaseResult
        What became of it; plain values.
    """
    worker = get_worker()
    plugin: NetworkPlugin = worker.plugins[task.plugin]
    threads = max(1, int(worker.state.nthreads))
    job = cohort.Job(
        plugin.network,
        plugin.bundle.card,
        task.options,
        task.wanted,
        # Of another attempt at this case, what is complete is kept, and what is torn is replaced;
        # what anyone else has put there meanwhile is in the way, as it would be on one machine.
        resume=task.resume or task.fresh,
        workers=threads - 1,
    )
    read = job.read((0, task.case), threads == 1)
    if read is None:  # no room beside what the other threads hold
        with plugin.turn:
            return job.stages().in_turn((0, task.case))
    if isinstance(read, Ended):
        return read.result
    with plugin.turn:
        found = job.compute(read)
    del read
    return found.result if isinstance(found, Ended) else job.write(found)


def look_around(
    folders: Sequence[str], token: str, output: str, plugin: str, dask_worker: Any = None
) -> Mapping[str, Any]:
    """Say who a worker is and what it sees.

    Parameters
    ----------
    folders : sequence of str
        Folders with CTs.
    token : str
        A file that the caller has just made in the output folder.
    output : str
        The output folder.
    plugin : str
        Name of the plugin that holds the model.
    dask_worker : Worker
        The worker, as Dask gives it.

    Returns
    -------
    Mapping
        ``version`` and ``python``; ``unseen``, the first folder that is not the same here, if
        there is one; ``refused``, why nothing can be written, if so; ``ready``, whether the
        model is there from an earlier run.
    """
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
    """Python's version without its last part: what must agree for objects to travel."""
    return ".".join(platform.python_version_tuple()[:2])

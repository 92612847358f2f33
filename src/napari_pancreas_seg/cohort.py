"""Many CTs, one after the other, and what became of each."""

from __future__ import annotations

import functools
import logging
import math
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from napari_pancreas_seg.cases import Case, check_targets, find_inputs, output_path, plan
from napari_pancreas_seg.errors import PancreasSegError
from napari_pancreas_seg.inference.result import Options, Progress, Segmentation
from napari_pancreas_seg.io import check_can_save, load_ct, save_map, save_mask, stem
from napari_pancreas_seg.io.dicom_uids import mint_uids as complete_uids
from napari_pancreas_seg.io.files import all_or_none
from napari_pancreas_seg.io.memory import check_fits
from napari_pancreas_seg.model.bundle import load_card
from napari_pancreas_seg.provenance import describe, write_sidecar
from napari_pancreas_seg.volume import CTVolume

if TYPE_CHECKING:
    from napari_pancreas_seg.inference.segmentation import LoadedModel

__all__ = [
    "Case",
    "CaseResult",
    "find_inputs",
    "output_path",
    "plan",
    "save_case",
    "segment_cases",
]

logger = logging.getLogger(__name__)

_NETWORK_BYTES = 800_000_000
"""Keras, TensorFlow and the network at work on a batch, about, on a processor."""

_MAPS_BYTES = 4 * 160 * 224 * 2
"""Probability, attention and what post-processing makes of them, for each slice."""


class Wanted(NamedTuple):
    """Which files a case gets, and whether old ones may be replaced."""

    attention: bool
    probability: bool
    overwrite: bool
    mint_uids: bool = False


@dataclass(frozen=True)
class CaseResult:
    """What became of a case.

    Parameters
    ----------
    case : Case
        The case.
    files : tuple of Path
        What was written, the mask first; empty for a failed case.
    volume_ml : float
        Volume of the mask in mL.
    slices : int
        Slices that hold any of it.
    seconds : float
        Time the case took, reading and writing included.
    error : str, optional
        Why it failed, one sentence; None for a case that is done.
    notes : tuple of str
        Sentences the user should read.
    """

    case: Case
    files: tuple[Path, ...] = ()
    volume_ml: float = 0.0
    slices: int = 0
    seconds: float = 0.0
    error: str | None = None
    notes: tuple[str, ...] = ()


def save_case(
    segmentation: Segmentation,
    volume: CTVolume,
    mask_path: str | Path,
    *,
    attention: bool = False,
    probability: bool = False,
    overwrite: bool = False,
    maps: str | None = None,
    seconds: dict[str, float] | None = None,
    mint_uids: bool = False,
) -> list[Path]:
    """Write a mask, its sidecar and, if asked for, its maps: all of them or none.

    Parameters
    ----------
    segmentation : Segmentation
        What the model found.
    volume : CTVolume
        The CT.
    mask_path : str or Path
        Where the mask goes. For ``m.nii.gz`` the others are ``m.json``,
        ``m_probability.nii.gz`` and ``m_attention_1.nii.gz`` (finest), ….
    attention, probability : bool
        Whether to write these maps, at the resolution of the network.
    overwrite : bool
        Whether existing files may be replaced.
    maps : str, optional
        Start of the maps' names, if it is not the mask's.
    seconds : dict of str to float, optional
        Further stages for the sidecar.
    mint_uids : bool
        Whether a DICOM-SEG of a series without UIDs may be given some.

    Returns
    -------
    list of Path
        What was written, the mask first.

    Raises
    ------
    PancreasSegError
        If a file exists already or cannot be written.
    """
    mask_path = Path(mask_path)
    case = Case(volume.source.path or Path("CT"), mask_path, maps or stem(mask_path))
    check_targets(case, attention=attention, probability=probability, overwrite=overwrite)
    scalar_maps = [(case.probability, segmentation.probability)] if probability else []
    if attention:
        scalar_maps += [
            (case.attention(k), found) for k, found in enumerate(segmentation.attention, start=1)
        ]
    volume = _writable(volume, case.mask, mint_uids=mint_uids)
    record = describe(volume, segmentation, seconds=seconds)
    # The sidecar comes last: where it is, the case is complete.
    targets = [case.mask, *(path for path, _ in scalar_maps), case.sidecar]
    with all_or_none(case.mask.parent, last=case.sidecar.name, overwrite=overwrite) as folder:
        save_mask(
            segmentation.mask,
            volume,
            folder / case.mask.name,
            card=segmentation.model,
        )
        for path, scalar_map in scalar_maps:
            save_map(scalar_map, volume, folder / path.name)
        write_sidecar(folder / case.sidecar.name, record)
    return targets


def segment_cases(
    cases: Sequence[Case],
    model: str = "default",
    options: Options | None = None,
    *,
    attention: bool = False,
    probability: bool = False,
    overwrite: bool = False,
    mint_uids: bool = False,
    on_progress: Callable[[int, Progress], None] | None = None,
) -> Iterator[CaseResult]:
    """Segment CTs one after the other; one bad case does not stop the others.

    Parameters
    ----------
    cases : sequence of Case
        From `plan`.
    model : str
        Name or path of a model bundle.
    options : Options, optional
        How to segment.
    attention, probability : bool
        Whether to write these maps.
    overwrite : bool
        Whether existing files may be replaced; a case that has some fails before any work.
    mint_uids : bool
        Whether a DICOM-SEG of a series without UIDs may be given some.
    on_progress : callable, optional
        Called with the case's index and each `Progress`.

    Yields
    ------
    CaseResult
        One for each case, in order, as soon as it is done or has failed.

    Raises
    ------
    PancreasSegError
        If there is no such model.
    """
    asked = options or Options()
    load_card(model)  # what is true of every case is said once
    wanted = Wanted(attention, probability, overwrite, mint_uids)

    @functools.cache
    def network() -> LoadedModel:
        # Here, so that nothing that loads Keras is imported before there is a CT to segment.
        from napari_pancreas_seg.inference.segmentation import LoadedModel

        return LoadedModel(model, asked.device)

    for index, case in enumerate(cases):
        start = time.perf_counter()

        def report(step: Progress, index: int = index) -> None:
            if on_progress is not None:
                on_progress(index, step)

        try:
            yield _run(case, network, asked, wanted, report)
        except Exception as error:
            logger.debug("case %d failed", index, exc_info=True)
            seconds = time.perf_counter() - start
            yield CaseResult(case, seconds=seconds, error=_sentence(case, error))


def _run(
    case: Case,
    network: Callable[[], LoadedModel],
    options: Options,
    wanted: Wanted,
    report: Callable[[Progress], None],
) -> CaseResult:
    """Segment one case; what it holds is freed before the next one is read."""
    start = time.perf_counter()
    check_targets(
        case,
        attention=wanted.attention,
        probability=wanted.probability,
        overwrite=wanted.overwrite,
    )
    volume = load_ct(case.source, series=case.series)
    volume = _writable(volume, case.mask, mint_uids=wanted.mint_uids)
    check_fits(case.source.name, _bytes_needed(volume.grid.shape), "Segmenting it")
    read = time.perf_counter()
    report(Progress("loading the network", 0, volume.grid.shape[0]))
    loaded = network()
    before = {"reading the CT": read - start, "loading the network": time.perf_counter() - read}
    found = _segment(volume, loaded, options, report)
    files = save_case(
        found,
        volume,
        case.mask,
        **wanted._asdict(),
        maps=case.maps,
        seconds=before,
    )
    return CaseResult(
        case,
        tuple(files),
        found.volume_ml,
        int(found.mask.any(axis=(1, 2)).sum()),
        time.perf_counter() - start,
        notes=tuple(dict.fromkeys((*volume.notes, *found.notes))),
    )


def _bytes_needed(shape: tuple[int, int, int]) -> int:
    """Memory that segmenting takes beside the CT itself: network, masks and maps."""
    return _NETWORK_BYTES + 2 * math.prod(shape) + shape[0] * _MAPS_BYTES


def _writable(volume: CTVolume, mask: Path, *, mint_uids: bool) -> CTVolume:
    """Refuse what could not be written; give a series the UIDs that a DICOM-SEG refers to."""
    if mint_uids and mask.suffix.lower() == ".dcm":
        volume = complete_uids(volume)
    check_can_save(mask, volume)
    return volume


def _segment(
    volume: CTVolume, model: LoadedModel, options: Options, report: Callable[[Progress], None]
) -> Segmentation:
    from napari_pancreas_seg.inference import segmentation

    steps: Generator[Progress, Any, Segmentation] = segmentation.iter_segment(
        volume, model, options
    )
    try:
        while True:
            report(next(steps))
    except StopIteration as end:
        found: Segmentation = end.value
        return found
    finally:
        steps.close()


def _sentence(case: Case, error: Exception) -> str:
    """Say in one sentence why a case failed."""
    if isinstance(error, PancreasSegError):
        return str(error)
    if isinstance(error, MemoryError):
        return (
            f"'{case.source.name}' needs more memory than there is; close other programs, choose "
            "a smaller --batch-size or crop the CT."
        )
    what = " ".join(str(error).split())[:300]
    return (
        f"'{case.source.name}' failed unexpectedly ({type(error).__name__}: {what}); run it again "
        "with --debug and report what it says."
    )

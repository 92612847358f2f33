"""A cohort on a Dask cluster: one case is one task, and the workers keep the model loaded.

Paths mean the same on every machine. Dask hands the case of a worker that dies to another one,
which keeps what the first one has completed and replaces what is torn.
"""

from __future__ import annotations

import contextlib
import logging
import secrets
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from napari_pancreas_seg._version import __version__
from napari_pancreas_seg.cohort.cases import Case
from napari_pancreas_seg.cohort.steps import CaseInWork, CaseResult, CaseSegmenter, failure
from napari_pancreas_seg.errors import PancreasSegError
from napari_pancreas_seg.inference.options import OutputOptions
from napari_pancreas_seg.inference.result import Options, Progress
from napari_pancreas_seg.io.files import make_folder
from napari_pancreas_seg.model.bundle import load_bundle

if TYPE_CHECKING:
    from napari_pancreas_seg.inference.segment import LoadedModel

try:
    import distributed
    from distributed import Client, Future
except ImportError as error:
    raise PancreasSegError(
        "--scheduler needs Dask; install it with pip install 'napari-pancreas-seg[dask]'."
    ) from error

from napari_pancreas_seg.cohort.cluster.worker import (
    ClusterTask,
    ModelPlugin,
    inspect_worker,
    python_version,
    run_case,
)

logger = logging.getLogger(__name__)

_RETRIES = 2
"""How often a case is tried again that a worker could not begin. The case of a worker that died is
tried again by Dask, as often as the scheduler's ``allowed-failures`` says."""


def segment_on_cluster(
    scheduler: str,
    cases: Sequence[Case],
    model: str = "default",
    options: Options | None = None,
    outputs: OutputOptions | None = None,
    *,
    timeout_s: float = 20.0,
    on_progress: Callable[[int, Progress], None] | None = None,
) -> Generator[CaseResult]:
    """Segment CTs on a Dask cluster; results come as cases are done, not in their order."""
    asked = options or Options()
    bundle = load_bundle(model)
    cases = [
        replace(case, source=case.source.absolute(), mask=case.mask.absolute()) for case in cases
    ]
    here = CaseSegmenter(_no_network, bundle.card, asked, outputs or OutputOptions())
    with _connected(scheduler, timeout_s) as client:
        plugin = ModelPlugin(bundle, asked.device)
        _prepare(client, scheduler, cases, plugin)
        tasks: dict[int, ClusterTask] = {}
        for index, case in enumerate(cases):
            task = _task(here, case, plugin.name)
            if isinstance(task, CaseResult):
                yield task
            else:
                tasks[index] = task
        done = len(cases) - len(tasks)
        for index, result in _run(client, tasks):
            done += 1
            if on_progress is not None:
                on_progress(index, Progress("segmenting on the cluster", done, len(cases)))
            yield result


def _task(here: CaseSegmenter, case: Case, plugin: str) -> ClusterTask | CaseResult:
    """Make a task of a case, unless it is certainly done or something is in its way."""
    work, start = CaseInWork(0, case), time.perf_counter()
    try:
        previous = here.begin(work)
    except Exception as error:
        return failure(case, error, start)
    return work.result or ClusterTask(case, here.options, here.outputs, plugin, previous is None)


def _run(client: Client, tasks: Mapping[int, ClusterTask]) -> Iterator[tuple[int, CaseResult]]:
    """Hand out the tasks; yield index and result of each as they finish."""
    run = secrets.token_hex(4)
    waiting: dict[Future, int] = {
        client.submit(
            run_case, task, key=f"segment-{run}-{index}", retries=_RETRIES, pure=False
        ): index
        for index, task in tasks.items()
    }
    try:
        for future in distributed.as_completed(list(waiting), loop=client.loop):
            index = waiting.pop(future)
            result = _outcome(future, tasks[index])
            future.release()
            yield index, result
    finally:
        # After Ctrl+C: what has begun is finished, and written whole, by its worker.
        with contextlib.suppress(Exception):
            client.cancel(list(waiting))


def _outcome(future: Future, task: ClusterTask) -> CaseResult:
    if future.status not in ("finished", "error"):
        raise PancreasSegError(
            "The scheduler was lost; run the same command again: what is done is kept."
        )
    error = future.exception()
    if error is None:
        result: CaseResult = future.result()
        # Not done when it was handed out: done by this run, by a worker that died just after it
        # had written the last file, or by a person meanwhile.
        return replace(result, before=result.before and not task.fresh)
    if isinstance(error, PancreasSegError):
        raise error  # such as a device that is not there: true of every case
    if isinstance(error, distributed.KilledWorker):
        return CaseResult(
            task.case,
            error=f"{error.allowed_failures + 1} workers died while they segmented "
            f"'{task.case.source.name}', as they do when memory runs out; look into their logs, "
            "give them more memory or fewer threads (--nthreads), or crop the CT.",
        )
    return failure(task.case, error, time.perf_counter())


@contextlib.contextmanager
def _connected(scheduler: str, timeout_s: float) -> Iterator[Client]:
    """Connect to a scheduler that has workers."""
    with contextlib.ExitStack() as stack:
        dask = logging.getLogger("distributed")
        if not logger.isEnabledFor(logging.DEBUG):  # what it logs is said in one sentence
            stack.callback(dask.setLevel, dask.level)
            dask.setLevel(logging.CRITICAL)
        try:
            client = distributed.Client(scheduler, timeout=timeout_s, set_as_default=False)
        except (OSError, ValueError, TimeoutError) as error:
            raise PancreasSegError(
                f"There is no Dask scheduler at '{scheduler}'; start one with 'dask scheduler' "
                "and give the address that it prints, such as tcp://node1:8786."
            ) from error
        stack.callback(_close, client)
        try:
            client.wait_for_workers(1, timeout=timeout_s)
        except TimeoutError as error:
            raise PancreasSegError(
                f"The scheduler at '{scheduler}' has no workers; start some with "
                f"'dask worker {scheduler} --nthreads 2'."
            ) from error
        yield client


def _close(client: Client) -> None:
    with contextlib.suppress(Exception):
        client.close(timeout=5)


def _prepare(client: Client, scheduler: str, cases: Sequence[Case], plugin: Any) -> None:
    """Check that the workers fit this machine, and give them the model."""
    folders = sorted({str(case.source.parent) for case in cases})
    for output in sorted({case.mask.parent for case in cases}):
        make_folder(output)
        token = output / f".{secrets.token_hex(8)}.part"
        try:
            token.touch()
            seen = client.run(
                inspect_worker, folders, str(token), str(output), plugin.name, on_error="return"
            )
        except OSError as error:
            raise PancreasSegError(f"Nothing can be written into '{output}'.") from error
        finally:
            token.unlink(missing_ok=True)
        for worker, found in seen.items():
            _check_worker(f"The worker {worker} of '{scheduler}'", found)
    if not all(found["ready"] for found in seen.values()):
        client.register_plugin(plugin)


def _check_worker(who: str, found: Mapping[str, Any] | BaseException) -> None:
    """Refuse a worker that has another version of this program or of Python, or other files."""
    if isinstance(found, BaseException):
        raise PancreasSegError(
            f"{who} cannot run napari-pancreas-seg ({type(found).__name__}); install version "
            f"{__version__} of it, with its extra 'dask', on every machine."
        )
    mine = {"version": __version__, "python": python_version()}
    for key, name in (("version", "napari-pancreas-seg"), ("python", "Python")):
        if found[key] != mine[key]:
            raise PancreasSegError(
                f"{who} runs {name} {found[key]} and this machine {mine[key]}; install the same "
                "version on every machine."
            )
    if found["unseen"]:
        raise PancreasSegError(
            f"{who} does not see the folder '{found['unseen']}' as this machine does; CTs and "
            "masks must lie on a disk that all machines share, under the same path."
        )
    if found["refused"]:
        raise PancreasSegError(f"{who}: {found['refused']}")


def _no_network() -> LoadedModel:
    raise AssertionError("the network runs on the workers")

"""A real CT to try the program on, downloaded when asked for and kept in a cache."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from napari_pancreas_seg.errors import PancreasSegError

__all__ = ["EXAMPLE_SHA256", "EXAMPLE_URL", "cache_folder", "example_ct_path"]

logger = logging.getLogger(__name__)

EXAMPLE_URL = (
    "https://raw.githubusercontent.com/wasserth/TotalSegmentator/"
    "0e65a448d557382b1e925276212b3bec7f5aff83/tests/reference_files/example_ct.nii.gz"
)
"""A file of the TotalSegmentator repository (Apache-2.0) at a fixed commit."""

EXAMPLE_SHA256 = "dbd3ae6d614d1d7ef3a46925c30c70038ed52da6b37fdd6afdc7b9b71387e3e1"


def cache_folder() -> Path:
    """Folder for what is downloaded.

    Returns
    -------
    Path
        What the environment variable ``NAPARI_PANCREAS_SEG_CACHE`` names, else the user's
        cache folder for this program. It may not exist yet.
    """
    chosen = os.environ.get("NAPARI_PANCREAS_SEG_CACHE")
    if chosen:
        return Path(chosen).expanduser()
    import platformdirs

    return Path(platformdirs.user_cache_dir("napari-pancreas-seg", appauthor=False))


def example_ct_path(
    url: str = EXAMPLE_URL,
    *,
    sha256: str = EXAMPLE_SHA256,
    folder: Path | None = None,
    timeout_s: float = 30.0,
) -> Path:
    """Path of a real CT of the trunk, downloaded on the first call (2 MB).

    The CT comes from the reference files of TotalSegmentator (Wasserthal et al. 2023,
    doi:10.1148/ryai.230024; Apache-2.0): 3 mm voxels, no contrast agent, a small fatty
    pancreas. It is a hard case for a network trained on portal-venous CT.

    Parameters
    ----------
    url : str
        Where to download it from.
    sha256 : str
        What the file must hash to; anything else is thrown away.
    folder : Path, optional
        Where to keep it; a folder in `cache_folder` by default.
    timeout_s : float
        Seconds of silence after which the server counts as unreachable.

    Returns
    -------
    Path
        The file ``example_ct.nii.gz``, its hash checked.

    Raises
    ------
    PancreasSegError
        If there is no connection, the server does not have the file or sends another, or
        the folder cannot be written. No partial file is left behind.
    """
    import pooch
    import requests

    folder = cache_folder() / "example" if folder is None else Path(folder)
    try:
        path = pooch.retrieve(
            url,
            known_hash=f"sha256:{sha256}",
            fname="example_ct.nii.gz",
            path=folder,
            downloader=pooch.HTTPDownloader(timeout=timeout_s),
        )
    # The order matters: requests' errors are also OSErrors, some of them ValueErrors too.
    except requests.HTTPError as error:
        status = "an error" if error.response is None else error.response.status_code
        raise PancreasSegError(
            f"The server answered with {status} instead of sending the example CT ({url}); "
            "try again later or open a CT of your own."
        ) from error
    except requests.RequestException as error:
        logger.debug("download of %s failed", url, exc_info=True)
        raise PancreasSegError(
            f"The example CT could not be downloaded from {url}: the connection failed or "
            "broke off. Check the network, or open the synthetic sample, which needs none."
        ) from error
    except ValueError as error:
        raise PancreasSegError(
            f"What came from {url} is not the example CT (its SHA-256 differs): a network's "
            "login page or a damaged download. It was thrown away; check the network and try "
            "again."
        ) from error
    except OSError as error:
        raise PancreasSegError(
            f"The example CT cannot be kept in {folder} ({error.strerror or 'not writable'}); "
            "set NAPARI_PANCREAS_SEG_CACHE to a folder that can be written."
        ) from error
    return Path(path)

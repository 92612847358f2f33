"""Files from the network: only when asked for, checked by hash, kept in a cache."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from napari_pancreas_seg.errors import PancreasSegError

__all__ = ["cache_folder", "download"]

_log = logging.getLogger(__name__)


def cache_folder() -> Path:
    """Folder for what is downloaded, and for models of the user's own.

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


def download(
    url: str, sha256: str, target: Path, what: str, *, otherwise: str = "", timeout_s: float = 30.0
) -> Path:
    """Download a file unless it is there already, whole or not at all.

    Parameters
    ----------
    url : str
        Where to download it from.
    sha256 : str
        What the file must hash to; anything else is thrown away.
    target : Path
        Where it goes; a file there with another hash is replaced.
    what : str
        What it is, for messages: ``"the example CT"``.
    otherwise : str
        A sentence on what to do without it, for messages.
    timeout_s : float
        Seconds of silence after which the server counts as unreachable.

    Returns
    -------
    Path
        The target, its hash checked.

    Raises
    ------
    PancreasSegError
        If there is no connection, the server does not have the file or sends another, or
        the folder cannot be written. No partial file is left behind.
    """
    import pooch
    import requests

    try:
        pooch.retrieve(
            url,
            known_hash=f"sha256:{sha256}",
            fname=target.name,
            path=target.parent,
            downloader=pooch.HTTPDownloader(timeout=timeout_s),
        )
    # The order matters: requests' errors are also OSErrors, some of them ValueErrors too.
    except requests.HTTPError as error:
        status = "an error" if error.response is None else error.response.status_code
        raise PancreasSegError(
            f"The server answered with {status} instead of sending {what} ({url}); "
            f"try again later. {otherwise}".rstrip()
        ) from error
    except requests.RequestException as error:
        _log.debug("download of %s failed", url, exc_info=True)
        raise PancreasSegError(
            f"{what.capitalize()} could not be downloaded from {url}: the connection failed or "
            f"broke off. Check the network. {otherwise}".rstrip()
        ) from error
    except ValueError as error:
        raise PancreasSegError(
            f"What came from {url} is not {what} (its SHA-256 differs): a network's login page "
            "or a damaged download. It was thrown away; check the network and try again."
        ) from error
    except OSError as error:
        raise PancreasSegError(
            f"{what.capitalize()} cannot be kept in {target.parent} "
            f"({error.strerror or 'not writable'}); set NAPARI_PANCREAS_SEG_CACHE to a folder "
            "that can be written."
        ) from error
    return target

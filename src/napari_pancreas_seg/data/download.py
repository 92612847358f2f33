"""Files from the network: only when asked for, checked by hash, kept in a cache."""

from __future__ import annotations

import logging
import os
import time
from pathlib import Path
from typing import IO, Any
from urllib.parse import urljoin, urlsplit

from napari_pancreas_seg.errors import PancreasSegError

_log = logging.getLogger(__name__)

_CHUNK = 1 << 16

_SLOWEST = 1000  # bytes a second, below which a server counts as silent

_LARGEST = 1 << 31
_MOST_REDIRECTIONS = 6


def cache_folder() -> Path:
    """Folder that NAPARI_PANCREAS_SEG_CACHE names, else this program's own in the user's cache."""
    chosen = os.environ.get("NAPARI_PANCREAS_SEG_CACHE")
    if chosen:
        return Path(chosen).expanduser()
    import platformdirs

    return Path(platformdirs.user_cache_dir("napari-pancreas-seg", appauthor=False))


def download(
    url: str, sha256: str, target: Path, what: str, *, otherwise: str = "", timeout_s: float = 30.0
) -> Path:
    """Download a file unless it is there already, whole or not at all.

    By pooch, with what it lacks: nothing but TLS, whatever redirects; a limit of the size; an end
    to a server that is silent, or next to it, for `timeout_s`. `what` names the file in messages,
    `otherwise` is a sentence on what to do without it.
    """
    import pooch
    import requests

    subject = what[:1].upper() + what[1:]

    def fetch(address: str, file: str, _: object) -> None:
        _fetch(address, Path(file), timeout_s)

    try:
        pooch.retrieve(
            url,
            known_hash=f"sha256:{sha256}",
            fname=target.name,
            path=target.parent,
            downloader=fetch,
        )
    # The order matters: requests' errors are also OSErrors, some of them ValueErrors too.
    except requests.HTTPError as error:
        status = "an error" if error.response is None else error.response.status_code
        raise PancreasSegError(
            f"The server answered with {status} instead of sending {what} ({url}); "
            f"try again later. {otherwise}".rstrip()
        ) from error
    except _Refused as error:
        raise PancreasSegError(
            f"{subject} was not downloaded from {url}: {error}. {otherwise}".rstrip()
        ) from error
    except requests.RequestException as error:
        _log.debug("download of %s failed", url, exc_info=True)
        raise PancreasSegError(
            f"{subject} could not be downloaded from {url}: the connection failed or "
            f"broke off. Check the network. {otherwise}".rstrip()
        ) from error
    except ValueError as error:
        raise PancreasSegError(
            f"What came from {url} is not {what} (its SHA-256 differs): a network's login page "
            "or a damaged download. It was thrown away; check the network and try again."
        ) from error
    except OSError as error:
        raise PancreasSegError(
            f"{subject} cannot be kept in {target.parent} "
            f"({error.strerror or 'not writable'}); set NAPARI_PANCREAS_SEG_CACHE to a folder "
            "that can be written."
        ) from error
    return target


class _Refused(Exception):
    """The download was refused, for a reason that ends a sentence."""


def _fetch(url: str, file: Path, timeout_s: float) -> None:
    """Download over TLS, every redirection too, and give up on a server that only trickles."""
    import requests

    with requests.Session() as session, open(file, "wb") as out:
        for _ in range(_MOST_REDIRECTIONS):
            _check_encrypted(url)
            response = session.get(
                url,
                timeout=timeout_s,
                stream=True,
                allow_redirects=False,
                headers={"Accept-Encoding": "identity"},
            )
            if not response.is_redirect:
                break
            url = urljoin(url, response.headers["location"])
            response.close()
        else:
            raise _Refused("the server redirects without end")
        with response:
            response.raise_for_status()
            _receive(response, out, timeout_s)


def _receive(response: Any, out: IO[bytes], timeout_s: float) -> None:
    received, looked, before = 0, time.monotonic(), 0
    # What has arrived, not a full block: a block may take for ever to fill.
    while chunk := _next_bytes(response):
        out.write(chunk)
        received += len(chunk)
        if received > _LARGEST:
            raise _Refused("the server sends more than any such file has; try again later")
        if time.monotonic() - looked > timeout_s:
            if received - before < _SLOWEST * timeout_s:
                raise _Refused("the connection is too slow; try again on another network")
            looked, before = time.monotonic(), received


def _next_bytes(response: Any) -> bytes:
    """Bytes as they come, or none at the end."""
    import requests
    import urllib3

    try:
        return bytes(response.raw.read1(_CHUNK, decode_content=False))
    except urllib3.exceptions.HTTPError as error:
        raise requests.ConnectionError(error) from error


def _check_encrypted(url: str) -> None:
    """Allow TLS only; what never leaves this machine needs none."""
    parts = urlsplit(url)
    if parts.scheme != "https" and not (
        parts.scheme == "http" and parts.hostname in ("127.0.0.1", "::1", "localhost")
    ):
        raise _Refused(
            f"'{parts.scheme}://{parts.hostname}' is not encrypted (https), and nothing else is "
            "accepted; check the network or the address"
        )

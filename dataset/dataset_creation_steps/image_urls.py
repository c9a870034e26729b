"""Image addresses as Amazon writes them: `…/images/I/<id>._SL500_.jpg`, 500 px at most."""

from __future__ import annotations

import re

# What stands between the id and the extension asks for a size or a cut-out: `._SY88`,
# `._SX38_SY50_CR,0,0,38,50_`.
_AMAZON = re.compile(
    r"^(?P<head>https?://[^?#]*/images/[A-Z]/[^/?#.]+)(?:\._[^/?#]*)?(?P<end>\.\w+)$"
)


def stored_image(url: str) -> str:
    """The address of the photo as it was uploaded, whatever size `url` asks for.

    Two addresses of the same photo in different sizes give the same text; an address of another
    form is returned as it is.
    """
    found = _AMAZON.match(url)
    return found["head"] + found["end"] if found else url


def sized_image(url: str, side: int) -> str:
    """The address of the same photo, scaled by the server.

    Args:
        url: an address; one that is not of Amazon's form is returned as it is.
        side: of the longest side, pixels; 0 asks for the photo as it was uploaded.
    """
    found = _AMAZON.match(url)
    if not found:
        return url
    return f"{found['head']}._SL{side}_{found['end']}" if side else stored_image(url)

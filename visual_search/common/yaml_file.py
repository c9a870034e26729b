"""Reading a YAML file that a user wrote."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from visual_search.common.errors import UserError
from visual_search.common.files import regular_text


def read_yaml(path: Path, what: str) -> Any:
    """What is in the file; None where it is empty.

    Args:
        path: UTF-8.
        what: is in it, for the message: "the config".

    Raises:
        UserError: when it cannot be read, or is no YAML.
    """
    try:
        return yaml.safe_load(regular_text(path))
    except OSError as error:
        raise UserError(f"{what} {path} cannot be read: {error.strerror}") from error
    except RecursionError as error:
        raise UserError(f"{what} {path} is not valid YAML: it is nested too deeply") from error
    except (yaml.YAMLError, ValueError) as error:  # the latter of dates and bytes that are none
        raise UserError(f"{what} {path} is not valid YAML: {error}") from error

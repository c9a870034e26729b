"""What requirements.txt brings to the evaluator, told from what is installed here."""

from __future__ import annotations

import re
from functools import cache
from importlib import metadata
from pathlib import Path

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from visual_search.common.errors import UserError, first_line
from visual_search.common.files import read_text


def read_requirements(path: Path, above: tuple[Path, ...] = ()) -> list[str]:
    """The requirements of a file and of those that it names by `-r`, without comments and options.

    Args:
        path: the file.
        above: those that name it.

    Raises:
        UserError: naming file and line of one that pip would not understand, that is an address
            without a name, or a folder of this machine.
    """
    if not path.is_file():
        raise UserError(f"{path} does not exist: the evaluator installs what it lists")
    if path.resolve() in above:
        raise UserError(f"{path} leads to itself by -r: remove that line")
    found = []
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        text = re.split(r"\s#|\s--|\\$", line.strip())[0].strip()  # less comment and hashes
        if nested := re.match(r"(?:-r|--requirement)[\s=]*(.+)", text):
            found += read_requirements(path.parent / nested[1], (*above, path.resolve()))
        if text.startswith(("-e", "--editable", "/", "./", "../", "file:")):
            raise UserError(f"{path} line {number}: {text!r} is a folder of this machine")
        if not text or text.startswith(("#", "-")):
            continue
        if re.match(r"[a-z+]+://", text):
            raise UserError(
                f"{path} line {number}: {text!r} does not say what it brings: write its name in "
                f"front, `<name> @ {text}`"
            )
        try:
            found.append(str(Requirement(text)))
        except InvalidRequirement as error:
            raise UserError(
                f"{path} line {number}: {text!r} is not a requirement ({first_line(error)})"
            ) from error
    return found


def installed_for(requirements: list[str]) -> tuple[set[str], list[str]]:
    """Installed distributions that `requirements` bring along, and the wanted that are missing.

    As `pip install --dry-run` would resolve them, which needs an index, seconds, and tells
    nothing of what is installed already.

    Returns:
        Canonical names of distributions with all that they depend on, by the metadata of what
        is installed here; and the requirements that nothing installed here satisfies.
    """
    waiting = [(Requirement(text), "") for text in requirements]
    found: set[str] = set()
    seen: set[tuple[str, str]] = set()
    missing = []
    while waiting:
        wanted, from_extra = waiting.pop()
        if wanted.marker and not wanted.marker.evaluate({"extra": from_extra}):
            continue
        name = canonicalize_name(wanted.name)
        try:
            distribution = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            if not from_extra and str(wanted) in requirements:
                missing.append(str(wanted))
            continue
        if not wanted.specifier.contains(distribution.version, prereleases=True):
            missing.append(f"{wanted} (here is {distribution.version})")
        found.add(str(name))
        for extra in {"", *wanted.extras}:
            if (name, extra) not in seen:
                seen.add((name, extra))
                waiting += [(Requirement(text), extra) for text in distribution.requires or []]
    return found, missing


def packages_to_hide(requirements: list[str]) -> dict[str, str]:
    """Import names that are installed here and that `requirements` do not bring.

    Returns:
        The top-level import name, and the distribution it belongs to. A name that also belongs
        to a wanted distribution (a namespace package) is not among them.
    """
    # pip and its like are in every environment; the submission brings its own two folders.
    wanted = installed_for(requirements)[0] | {"pip", "setuptools", "wheel"}
    own = ("visual_search", "my_submission")
    return {
        name: min(distributions)
        for name, distributions in _distributions_of_packages().items()
        if name.isidentifier() and name not in own
        if not wanted & {str(canonicalize_name(owner)) for owner in distributions}
    }


_distributions_of_packages = cache(metadata.packages_distributions)
"""What is installed here; reading it takes a second or two."""


def sets_up_itself(root: Path) -> bool:
    """Whether a Dockerfile installs something else than requirements.txt at the evaluator's.

    The kit's own installs that file before all else, so what it brings is what there is.
    """
    file = root / "Dockerfile"
    return file.is_file() and "--requirement requirements.txt" not in file.read_text("utf-8")

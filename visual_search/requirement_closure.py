"""What requirements.txt brings into an environment, and what is installed here besides."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib import metadata
from pathlib import Path

from visual_search.errors import UserError

# In every environment, whatever requirements.txt says.
ALWAYS_THERE = frozenset({"pip", "setuptools", "wheel"})


def read_requirements(path: Path) -> list[str]:
    """The requirements of a file, without comments, options and empty lines.

    Raises:
        UserError: naming file and line of one that pip would not understand, or that names a
            folder of this machine.
    """
    from packaging.requirements import InvalidRequirement, Requirement

    if not path.is_file():
        raise UserError(f"{path} does not exist: the evaluator installs what it lists")
    found = []
    for number, line in enumerate(path.read_text("utf-8-sig").splitlines(), start=1):
        text = line.partition(" #")[0].strip()
        if not text or text.startswith("#"):
            continue
        if text.startswith(("-e", "--editable", "/", "./", "../", "file:")):
            raise UserError(f"{path} line {number}: {text!r} is a folder of this machine")
        if text.startswith("-"):
            continue
        try:
            found.append(str(Requirement(text)))
        except InvalidRequirement as error:
            raise UserError(
                f"{path} line {number}: {text!r} is not a requirement ({error})"
            ) from error
    return found


def closure(requirements: list[str]) -> tuple[set[str], list[str]]:
    """Installed distributions that `requirements` bring along, and the wanted that are missing.

    Returns:
        Canonical names of distributions with all that they depend on, by the metadata of what
        is installed here; and the requirements that nothing installed here satisfies.
    """
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

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
        found.add(name)
        for extra in {"", *wanted.extras}:
            if (name, extra) not in seen:
                seen.add((name, extra))
                needs = distribution.requires or []
                waiting += [(Requirement(text), extra) for text in needs]
    return found, missing


@cache
def _distributions_of_packages() -> Mapping[str, list[str]]:
    """What is installed here; reading it takes a second or two."""
    return metadata.packages_distributions()


def packages_to_hide(requirements: list[str]) -> dict[str, str]:
    """Import names that are installed here and that `requirements` do not bring.

    Returns:
        The top-level import name, and the distribution it belongs to. A name that also belongs
        to a wanted distribution (a namespace package) is not among them.
    """
    from packaging.utils import canonicalize_name

    wanted = closure(requirements)[0] | ALWAYS_THERE
    hidden = {}
    for name, distributions in _distributions_of_packages().items():
        owners = {canonicalize_name(owner) for owner in distributions}
        if not owners & wanted and name.isidentifier():
            hidden[name] = sorted(distributions)[0]
    # The submission's own folders, where an editable installation of the project lists them.
    return {k: v for k, v in hidden.items() if k not in ("visual_search", "my_submission")}

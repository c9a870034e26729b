"""Environments of the packages to compare with, and runs in them.

clip-retrieval and OML want numpy 1 and other versions of pandas and pyarrow than ours, so each
stands in an environment of its own. It is built once, in the user's cache folder, and sees torch
and timm of the environment that the benchmark runs in: the same kernels on both sides.
"""

from __future__ import annotations

import json
import os
import shutil
import site
import subprocess
import sys
import venv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from visual_search.common.errors import UserError

PROJECT = Path(__file__).resolve().parent.parent
PACKAGES = {
    # Its CLIP package reads pkg_resources, which later setuptools do not bring.
    "clip-retrieval": ("clip-retrieval==2.45.0", "setuptools<80"),
    # Its modules import omegaconf, which only its pipelines extra names.
    "oml": ("open-metric-learning==4.0.0", "omegaconf>=2.3"),
    "img2dataset": ("img2dataset==1.47.0", "setuptools<80"),
}
TIMEOUT = 3600.0  # seconds, of one run


def cache_folder() -> Path:
    """Where the environments stand."""
    base = os.getenv("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "visual-search-benchmarks"


def interpreter(peer: str) -> Path:
    """The Python of a peer's environment, which is built where it is not there.

    Raises:
        UserError: when it cannot be built; the message ends with pip's own.
    """
    folder = cache_folder() / f"{peer}-{sys.version_info.major}.{sys.version_info.minor}"
    python = folder / "bin" / "python"
    marker = folder / ".finished"
    wanted = " ".join(PACKAGES[peer])
    if marker.is_file() and marker.read_text("utf-8") == wanted:
        return python
    print(f"building the environment of {wanted} in {folder} (once; a few minutes)", flush=True)
    shutil.rmtree(folder, ignore_errors=True)
    venv.create(folder, symlinks=True)
    library = next((folder / "lib").glob("python*/site-packages"))
    # Behind its own packages stand ours: torch is neither fetched nor built again.
    (library / "zz_parent.pth").write_text("\n".join(site.getsitepackages()), "utf-8")
    ours = [sys.executable, "-m", "pip", "--python", str(python)]
    call([*ours, "install", "--quiet", *PACKAGES[peer]], {})
    marker.write_text(wanted, "utf-8")
    return python


def call(command: Sequence[str], environment: dict[str, str]) -> str:
    """Run a command in the project; what it printed.

    Raises:
        UserError: when it fails, with the end of what it said.
    """
    done = subprocess.run(
        command,
        cwd=PROJECT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )
    if done.returncode:
        raise UserError(f"{' '.join(command[:6])} failed: {done.stderr.strip()[-600:]}")
    return done.stdout


def run_way(way: str, job: Path) -> tuple[np.ndarray, dict[str, Any]]:
    """Embed the photos of a job in one way: embeddings, and seconds of the stages."""
    python = interpreter(way) if way in PACKAGES else Path(sys.executable)
    shutil.rmtree(job.parent / "clip_retrieval_output", ignore_errors=True)
    call(
        [str(python), "-m", "benchmarks.ranker_child", way, str(job)], {"PYTHONPATH": str(PROJECT)}
    )
    seconds = json.loads(job.with_suffix(f".{way}.json").read_text("utf-8"))
    return np.load(job.with_suffix(f".{way}.npy")), seconds

"""Several processes on CPUs by `accelerate launch`, as they were asked for."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence

from visual_search.errors import UserError

RANK_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE")
"""What every launcher of several processes sets in each of them."""


def start_missing_processes(module: str) -> None:
    """Start the processes that `accelerate launch --cpu --num_processes N` was asked for.

    Without MPI, Accelerate starts a single process for it, without a word. It leaves the address
    of the main process in the environment, which it does for several processes only, but no
    rank: then this process runs them through torch's own launcher, and ends with them.

    Args:
        module: the entry point, such as `visual_search.main_arcface`.

    Raises:
        UserError: when the number of processes that was asked for cannot be found out.
    """
    if not lacks_processes(os.environ):
        return
    processes = requested_processes(_launcher_arguments())
    torchrun = (sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(processes))
    address = ("--master_addr", os.environ["MASTER_ADDR"])
    port = ("--master_port", os.environ.get("MASTER_PORT", "29500"))
    command = [*torchrun, *address, *port, "-m", module, *sys.argv[1:]]
    print(f"accelerate started one process; starting {processes} with torchrun", flush=True)
    raise SystemExit(subprocess.run(command, check=False).returncode)


def lacks_processes(environment: Mapping[str, str]) -> bool:
    """Whether Accelerate was asked for several CPU processes and started one."""
    on_cpu = environment.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes")
    ranked = any(name in environment for name in RANK_VARIABLES)
    return on_cpu and "MASTER_ADDR" in environment and not ranked


def requested_processes(arguments: Sequence[str]) -> int:
    """The value of `--num_processes` among the launcher's arguments.

    Raises:
        UserError: when there is none, as where it comes from a configuration file.
    """
    for position, argument in enumerate(arguments):
        name, _, value = argument.partition("=")
        if name.replace("-", "_") in ("__num_processes", "__num_process"):
            following = arguments[position + 1] if position + 1 < len(arguments) else ""
            value = value or following
            if value.isdigit() and int(value) > 1:
                return int(value)
    raise UserError(
        "accelerate launch was asked for several CPU processes and started one; start them with "
        "ACCELERATE_USE_CPU=true torchrun --nproc_per_node 2 -m visual_search.main_arcface …"
    )


def _launcher_arguments() -> list[str]:
    import psutil

    try:
        parent = psutil.Process().parent()
        return parent.cmdline() if parent else []
    except psutil.Error:
        return []

import sys

import pytest

from tests.commands import ran


@pytest.mark.slow
def test_no_cluster_is_said_with_what_to_start(environment: dict[str, str]) -> None:
    pytest.importorskip("ray")
    code = (
        "from visual_search.common.errors import run_command\n"
        "from dataset.dataset_creation_steps.engine import start_engine\n"
        "run_command(lambda: start_engine('ray', 'auto'))\n"
    )
    alone = environment | {"RAY_TMPDIR": "/nonexistent"}
    done = ran(sys.executable, "-c", code, env=alone)
    assert done.returncode == 2, done.stderr
    assert "ray start --head" in done.stderr

"""The whole job on the embedded catalogue: `make demo`. It runs the README's own commands."""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from visual_search.errors import UserError, exit_with_sentence
from visual_search.files import write_json

DATA = "dataset/demo/development_test_data"
BACKBONE = "config/backbone/efficientnet_lite0.yml"
INPUT_SIZE = "160"  # as the trained model's, so that only the training differs
CHAIN = "config/demo/phases.yml"
SUMMARY = Path("runs/demo/summary.json")


@dataclass(frozen=True)
class Evaluated:
    """What one local evaluation said."""

    mean_average_precision: float
    images_per_second: float
    report: Path


def main() -> None:
    """Score the untrained backbone, train, export, rank through the organiser's interface."""
    argparse.ArgumentParser(
        prog="python -m visual_search.main_demo",
        description="Train, export, rank and score on the embedded catalogue; about ten minutes.",
    ).parse_args()
    if not Path(BACKBONE).is_file():
        raise UserError("start it in the project's top folder: make demo")
    started = time.perf_counter()

    headline("1. The backbone as it comes, never trained on a product")
    plain = ("--output", "runs/demo/zero_shot", "--input_size", INPUT_SIZE)
    python("my_submission/to_torchscript.py", BACKBONE, *plain)
    zero_shot = evaluate("runs/demo/zero_shot", "--weights", "runs/demo/zero_shot")

    headline("2. Training, in five phases, on other products than those it will be asked for")
    python("-m", "visual_search.main_phases", "--config", CHAIN, "--force")
    chain = json.loads(Path("runs/demo/phases.json").read_text("utf-8"))["phases"]
    phases = [{key: row[key] for key in ("name", "mAP", "epoch", "seconds")} for row in chain]

    headline("3. Export and submission, through the organiser's interface")
    best = max(phases, key=lambda phase: phase["mAP"])
    python("my_submission/to_torchscript.py", f"runs/{best['name']}")
    trained = evaluate("runs/local_evaluation")

    seconds = round(time.perf_counter() - started, 1)
    summary: dict[str, Any] = {
        "zero_shot_map": zero_shot.mean_average_precision,
        "trained_map": trained.mean_average_precision,
        "phases": phases,
        "seconds": seconds,
        "images_per_second": trained.images_per_second,
        "report": str(trained.report),
    }
    write_json(SUMMARY, summary)
    headline("Result, on products that were never trained on")
    print(f"zero-shot mAP  {zero_shot.mean_average_precision:.4f}")
    for phase in phases:
        print(f"  after {phase['name']:<18} {phase['mAP']:.4f}   ({phase['seconds']:.0f} s)")
    print(f"trained mAP    {trained.mean_average_precision:.4f}   ({best['name']}, as submitted)")
    print(f"report         {trained.report}")
    print(f"summary        {SUMMARY}   ({seconds:.0f} s)")


def headline(text: str) -> None:
    """A line that separates the steps."""
    print(f"\n== {text}", flush=True)


def python(*arguments: str) -> None:
    """Show a command of the README and run it with this interpreter.

    Raises:
        UserError: when it fails; it has said why itself.
    """
    print(f"$ python {shlex.join(arguments)}", flush=True)
    status = subprocess.run([sys.executable, *arguments], check=False).returncode
    if status != 0:
        raise UserError(f"the demo stopped: `python {shlex.join(arguments)}` ended with {status}")


def evaluate(output: str, *options: str) -> Evaluated:
    """Run `local_evaluation.py` on the demo's development set and read its result."""
    python("local_evaluation.py", "--data-folder", DATA, "--output", output, *options)
    result = json.loads((Path(output) / "result.json").read_text("utf-8"))
    report = Path(output) / "report.html"
    return Evaluated(result["mAP"], result["images_per_second"], report)


if __name__ == "__main__":
    exit_with_sentence(main)

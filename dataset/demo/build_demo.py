"""Build the embedded data set: render the catalogue's models to seller and user photos.

Run from the repository root: python dataset/demo/build_demo.py --help
"""

import argparse
import os
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory

from visual_search.common.errors import run_command
from visual_search.common.ranges import whole_number

FOLDER = Path(__file__).resolve().parent
DEFAULT_SOURCE = Path("/usr/share/sweethome3d/furniture")
BUILT = ("Product10K", "development_test_data", "products.csv", "ATTRIBUTION.md", "SHA256SUMS")


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="build_demo.py",
        description="Render the embedded data set from the models of the Debian package "
        "sweethome3d-furniture. The result does not depend on the number of workers.",
    )
    add = parser.add_argument
    add("--source", type=Path, default=DEFAULT_SOURCE, help="folder of the *.sh3f archives")
    add("--output", type=Path, default=FOLDER, help="folder of the data set")
    add("--products", type=whole_number(1), metavar="N", help="only N products, for a try")
    add("--workers", type=whole_number(1), default=2, help="processes (default: 2)")
    return parser.parse_args(arguments)


def build(source: Path, output: Path, count: int | None, workers: int) -> None:
    """Make the data set of all products, or of `count` spread over the list, in `output`."""
    from tqdm import tqdm

    from dataset.demo.builder import photographer, plan, tables
    from dataset.demo.builder.catalogue import read_catalogue

    everything = plan.split(read_catalogue(source))
    step = len(everything) / min(count or len(everything), len(everything))
    products = [everything[int(i * step)] for i in range(round(len(everything) / step))]
    photos = [photo for product in products for photo in plan.photos_of(product)]
    for folder in sorted({photo.folder for photo in photos}):
        (output / folder).mkdir(parents=True, exist_ok=True)
    # One thread a worker: the workers fill the cores, and sums keep one order.
    os.environ |= {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "LP_NUM_THREADS": "1"}
    boxes: dict[str, tuple[int, int, int, int]] = {}
    make = partial(photographer.photograph, products=everything, output=output)
    with ProcessPoolExecutor(workers, get_context("spawn")) as pool:
        done = pool.map(make, products)
        for found in tqdm(done, total=len(products), desc="products", unit="product"):
            boxes.update(found)
    tables.write_tables(output, products, photos, boxes)
    tables.write_checksums(output)


def install(built: Path, output: Path) -> None:
    """Move what was built into `output` in place of what was there."""
    output.mkdir(parents=True, exist_ok=True)
    old = built / "replaced"
    old.mkdir()
    for name in BUILT:
        if (built / name).exists():
            if (output / name).exists():
                (output / name).rename(old / name)
            (built / name).rename(output / name)


def main() -> None:
    """Build elsewhere, and put it in place once all of it is there."""
    options = parse_arguments()
    options.output.parent.mkdir(parents=True, exist_ok=True)
    beside = {"prefix": ".demo-", "dir": options.output.parent}  # on the same disk
    with TemporaryDirectory(**beside, ignore_cleanup_errors=True) as folder:
        build(options.source, Path(folder), options.products, options.workers)
        install(Path(folder), options.output)


if __name__ == "__main__":
    run_command(main)

"""Build the embedded data set: render the catalogue's models to seller and user photos.

Run from the repository root: python dataset/demo/build_demo.py --help
"""

import argparse
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
DEFAULT_SOURCE = Path("/usr/share/sweethome3d/furniture")
BUILT = ("Product10K", "development_test_data", "products.csv", "ATTRIBUTION.md", "SHA256SUMS")
EXTRA = "pip install -e '.[demo-builder]'"


class BuildError(Exception):
    """The build cannot go on; the message says what to do."""


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="build_demo.py",
        description="Render the embedded data set from the models of the Debian package "
        "sweethome3d-furniture. The result does not depend on the number of workers.",
    )
    parser.add_argument(
        "--source", type=Path, default=DEFAULT_SOURCE, help="folder of the *.sh3f archives"
    )
    parser.add_argument("--output", type=Path, default=FOLDER, help="folder of the data set")
    parser.add_argument("--products", type=int, metavar="N", help="only N products, for a try")
    parser.add_argument("--workers", type=int, default=2, help="processes (default: 2)")
    parser.add_argument("--contact-sheet", type=Path, metavar="FILE", help="overview to look at")
    parser.add_argument(
        "--check",
        action="store_true",
        help="rebuild elsewhere and compare with SHA256SUMS in --output, changing nothing",
    )
    return parser.parse_args(arguments)


def build(source: Path, output: Path, count: int | None, workers: int) -> None:
    """Make the data set of all products, or of `count` spread over the list, in `output`."""
    try:
        import vtk  # noqa: F401
        from tqdm import tqdm

        from dataset.demo.builder import photographer
    except ImportError as error:
        raise BuildError(f"The builder needs {error.name}: run {EXTRA}.") from error
    from dataset.demo.builder import plan, tables
    from dataset.demo.builder.catalogue import CatalogueError, read_catalogue

    try:
        everything = plan.assign_splits(read_catalogue(source))
    except CatalogueError as error:
        raise BuildError(str(error)) from error
    step = len(everything) / min(count or len(everything), len(everything))
    products = [everything[int(i * step)] for i in range(round(len(everything) / step))]
    photos = [photo for product in products for photo in plan.photos_of(product)]
    for folder in sorted({photo.folder for photo in photos}):
        (output / folder).mkdir(parents=True, exist_ok=True)
    # One thread a worker: the workers fill the cores, and sums keep one order.
    os.environ |= {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "LP_NUM_THREADS": "1"}
    boxes: dict[str, tuple[int, int, int, int]] = {}
    with ProcessPoolExecutor(
        max_workers=max(1, workers),
        mp_context=get_context("spawn"),
        initializer=photographer.start,
        initargs=(everything, output),
    ) as pool:
        done = pool.map(photographer.photograph, products)
        for found in tqdm(done, total=len(products), desc="products", unit="product"):
            boxes.update(found)
    tables.write_tables(output, products, photos, boxes)
    tables.write_attribution(output, products)
    tables.write_checksums(output)


@contextmanager
def scratch_beside(output: Path) -> Iterator[Path]:
    """An empty folder on the same disk as `output`, removed at the end."""
    output.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=".demo-", dir=output.parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


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


def differences(built: Path, output: Path, *, whole: bool) -> list[str]:
    """Lines that say which files are missing, new or different from SHA256SUMS in `output`.

    Without `whole` only the photos that were rebuilt are compared.
    """
    from dataset.demo.builder import tables

    sums = output / "SHA256SUMS"
    if not sums.is_file():
        raise BuildError(f"{sums} is missing: build the data set first, without --check.")
    old, new = tables.read_checksums(sums), tables.checksums(built)
    if not whole:
        new = {name: digest for name, digest in new.items() if name.endswith(".jpg")}
        old = {name: digest for name, digest in old.items() if name in new}
    lines = [f"not rebuilt: {name}" for name in sorted(set(old) - set(new))]
    lines += [f"new: {name}" for name in sorted(set(new) - set(old))]
    lines += [f"different: {n}" for n in sorted(set(old) & set(new)) if old[n] != new[n]]
    return lines


def run(options: argparse.Namespace) -> int:
    """Build, or check; return the exit status."""
    with scratch_beside(options.output) as built:
        build(options.source, built, options.products, options.workers)
        if options.contact_sheet:
            from dataset.demo.builder.contact_sheet import write_contact_sheet

            write_contact_sheet(built, options.contact_sheet)
        if not options.check:
            install(built, options.output)
            return 0
        lines = differences(built, options.output, whole=options.products is None)
    print("\n".join(lines) if lines else "All files are the same, byte for byte.")
    return 1 if lines else 0


def main() -> int:
    """Entry point."""
    try:
        return run(parse_arguments())
    except BuildError as error:
        print(f"build_demo.py: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())

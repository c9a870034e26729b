"""The data set's tables, its attribution file and its checksums."""

import csv
import hashlib
from collections.abc import Mapping, Sequence
from operator import attrgetter
from pathlib import Path

from dataset.demo.builder import plan
from dataset.demo.builder.catalogue import APT_PACKAGE, Product
from dataset.demo.builder.plan import Photo

Box = tuple[int, int, int, int]

LICENCE_LINKS = {
    "CC-BY 3.0": "https://creativecommons.org/licenses/by/3.0/",
    "CC-BY 3.0 US": "https://creativecommons.org/licenses/by/3.0/us/",
    "CC0 1.0": "https://creativecommons.org/publicdomain/zero/1.0/",
}

ATTRIBUTION = f"""# Attribution

The photos in this folder are computer renderings of 3D models of real-looking products. The
models come from the catalogues made for Sweet Home 3D (https://www.sweethome3d.com), as Debian's
package `{APT_PACKAGE}` ships them; Emmanuel Puybaret (eTeks) collected and converted them.
Authors credited below without another affiliation published their models on Blend Swap
(https://www.blendswap.com); the archives hold each model's own licence file.

Changes made: the meshes were scaled to the catalogue's sizes, some materials simplified, and the
models rendered to photos, alone on white and together with other models in invented rooms, with
a simulated phone camera. A user photo may show models of several authors. The names of the
products are the catalogue's; its Russian names were translated by Kazimirov Valentin, Kunakov
Anton Yurevich, Andrey Surzhikov and Nikolay Lomasov.

The licence of each model holds for its renderings. No author endorses this project.

"""


def write_tables(
    output: Path, products: list[Product], photos: list[Photo], boxes: Mapping[str, Box]
) -> None:
    """Write every csv of the data set and ATTRIBUTION.md.

    Product ids are places in an order that mixes both splits and all categories; classes are
    0..C-1 of the training products, in the order of their ids.

    Args:
        boxes: x, y, w, h in pixels by the names of the query photos.
    """
    ordered = sorted(products, key=lambda p: hashlib.blake2b(p.key.encode()).hexdigest())
    ids = {p.key: i for i, p in enumerate(ordered)}
    classes = {p.key: i for i, p in enumerate(p for p in ordered if p.split == "train")}
    groups = {name: i for i, name in enumerate(sorted({p.category for p in products}))}
    described = attrgetter("name_en", "name_ru", "category", "author", "licence", "split")
    train, test, gallery, queries = (
        [(i, p.name, p.product) for i, p in enumerate(plan.shuffled(photos, folder))]
        for folder in (plan.TRAIN, plan.TEST, plan.GALLERY, plan.QUERIES)
    )
    tables: dict[str, tuple[str, Sequence[Sequence[object]]]] = {
        "Product10K/train.csv": (
            "name class group",
            [(name, classes[of.key], groups[of.category]) for _, name, of in train],
        ),
        "Product10K/test_kaggletest.csv": (
            "name class Usage",
            [(name, classes[of.key], "Private" if i % 3 else "Public") for i, name, of in test],
        ),
        "development_test_data/gallery.csv": (
            "seller_img_id img_path product_id",
            [(i, f"gallery/{name}", ids[of.key]) for i, name, of in gallery],
        ),
        "development_test_data/queries.csv": (
            "user_img_id img_path bbox_x bbox_y bbox_w bbox_h product_id",
            [(i, f"queries/{name}", *boxes[name], ids[of.key]) for i, name, of in queries],
        ),
        "products.csv": (
            "product_id name_en name_ru category author licence split class",
            [(i, *described(p), classes.get(p.key, "")) for i, p in enumerate(ordered)],
        ),
    }
    for name, (header, rows) in tables.items():
        (output / name).parent.mkdir(parents=True, exist_ok=True)
        with (output / name).open("w", encoding="utf-8", newline="") as handle:
            csv.writer(handle, lineterminator="\n").writerows([header.split(), *rows])
    (output / "ATTRIBUTION.md").write_text(_attribution(products, ids), encoding="utf-8")


def _attribution(products: list[Product], ids: Mapping[str, int]) -> str:
    """Every author with the licence and the products."""
    lines = [ATTRIBUTION + "Licences:\n"]
    lines += [f"- {name}: <{link}>" for name, link in sorted(LICENCE_LINKS.items())]
    lines += ["", "| Author | Licence | Products (number in products.csv) |", "| --- | --- | --- |"]
    credited: dict[tuple[str, str], list[Product]] = {}
    for product in products:
        credited.setdefault((product.author, product.licence), []).append(product)
    for (author, licence), made in sorted(credited.items(), key=lambda item: item[0][0].lower()):
        named = ", ".join(f"{p.name_en} ({ids[p.key]})" for p in sorted(made, key=lambda p: p.key))
        lines.append(f"| {author} | {licence} | {named} |")
    return "\n".join(lines) + "\n"


def write_checksums(output: Path) -> None:
    """Write SHA256SUMS of every photo and table, in the form that `sha256sum -c` reads."""
    files = [path for path in output.rglob("*") if path.suffix in (".jpg", ".csv")]
    lines = [
        f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.relative_to(output).as_posix()}\n"
        for path in sorted(files)
    ]
    (output / "SHA256SUMS").write_text("".join(lines), encoding="utf-8")

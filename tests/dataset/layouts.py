"""The public data sets in their true layouts, small: file names, headers and number formats.

Each function writes what the official download of the data set of its name unpacks to.
"""

import json
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from scipy.io import savemat

from tests.conftest import draw_product, write_csv

SIDE = 64


def image(path: Path, product: int, number: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    draw_product(product, number, SIDE).save(path)


def lines(path: Path, rows: Iterable[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{row}\n" for row in rows), encoding="utf-8")


def sop(folder: Path) -> None:
    """Classes are numbered across both lists; images end in upper-case JPG."""
    root = folder / "Stanford_Online_Products"
    header = "image_id class_id super_class_id path"
    number, every = 0, [header]
    for part, classes in (("train", (1, 2, 3)), ("test", (4, 5))):
        rows = [header]
        for label in classes:
            for index in range(2):
                number += 1
                name = f"bicycle_final/11108512287{label}_{index}.JPG"
                image(root / name, label, index)
                rows.append(f"{number} {label} 1 {name}")
        lines(root / f"Ebay_{part}.txt", rows)
        every += rows[1:]
    lines(root / "Ebay_info.txt", every)


def save_struct(path: Path, records: Sequence[dict[str, object]], **more: np.ndarray) -> None:
    """A .mat file with the struct array `annotations`, 1 x n."""
    array = np.empty((1, len(records)), dtype=[(name, object) for name in records[0]])
    for place, record in enumerate(records):
        for name, value in record.items():
            array[0, place][name] = value
    path.parent.mkdir(parents=True, exist_ok=True)
    savemat(path, {"annotations": array, **more})


def _cell(values: Sequence[str]) -> np.ndarray:
    cell = np.empty((1, len(values)), dtype=object)
    cell[0, :] = values
    return cell


CAR_CLASSES = (1, 97, 98, 99, 196)
CAR_NAMES = [f"Maker Model/{number} Sedan 2012" for number in range(1, 197)]
CAR_CORNERS = {"bbox_x1": 5, "bbox_y1": 7, "bbox_x2": 45, "bbox_y2": 57}


def cars(folder: Path) -> None:
    """CARS196.zip: one annotation file; `test` there is the classification split, not ours."""
    root = folder / "cars196"
    records: list[dict[str, object]] = []
    for label in CAR_CLASSES:
        for index in range(2):
            name = f"car_ims/{len(records) + 1:06d}.jpg"
            image(root / name, label, index)
            corners = {key: np.uint16(value) for key, value in CAR_CORNERS.items()}
            label_and_half = {"class": np.uint8(label), "test": np.uint8(index)}
            records.append({"relative_im_path": name, **corners, **label_and_half})
    save_struct(root / "cars_annos.mat", records, class_names=_cell(CAR_NAMES))


def cars_devkit(folder: Path) -> None:
    """The training and test half, with images numbered each from 1."""
    for half, table in (
        ("train", "devkit/cars_train_annos"),
        ("test", "cars_test_annos_withlabels"),
    ):
        records = []
        for number, label in enumerate(CAR_CLASSES, 1):
            image(folder / f"cars_{half}" / f"{number:05d}.jpg", label, half == "test")
            corners = {key: np.uint16(CAR_CORNERS[key]) for key in sorted(CAR_CORNERS)}
            records.append({**corners, "class": np.uint8(label), "fname": f"{number:05d}.jpg"})
        save_struct(folder / f"{table}.mat", records)
    savemat(folder / "devkit" / "cars_meta.mat", {"class_names": _cell(CAR_NAMES)})


def cars_csv(folder: Path) -> None:
    """Class folders and csv files without headers; a slash in a name is a hyphen in the folder."""
    lines(folder / "names.csv", CAR_NAMES)
    for half in ("train", "test"):
        rows = []
        for number, label in enumerate(CAR_CLASSES, 1):
            name = CAR_NAMES[label - 1].replace("/", "-")
            file = f"{number:05d}.jpg"
            image(folder / "car_data" / "car_data" / half / name / file, label, half == "test")
            rows.append(f"{file},5,7,45,57,{label}")
        lines(folder / f"anno_{half}.csv", rows)


def cub(folder: Path) -> None:
    """CUB_200_2011.tgz; beside the folder lies attributes.txt."""
    root = folder / "CUB_200_2011"
    images: list[str] = []
    labels, boxes, split = [], [], []
    for label in (1, 100, 101, 200):
        for index in range(2):
            number = len(images) + 1
            name = f"{label:03d}.Black_footed_Albatross/Black_Footed_Albatross_{number:04d}.jpg"
            image(root / "images" / name, label, index)
            images.append(f"{number} {name}")
            labels.append(f"{number} {label}")
            boxes.append(f"{number} 6.0 8.0 30.0 40.0")
            split.append(f"{number} {index}")
    lines(root / "images.txt", images)
    lines(root / "image_class_labels.txt", labels)
    lines(root / "bounding_boxes.txt", boxes)
    lines(root / "train_test_split.txt", split)
    lines(root / "classes.txt", ["1 001.Black_footed_Albatross"])
    lines(folder / "attributes.txt", ["1 has_bill_shape::curved_(up_or_down)"])


def inshop(folder: Path) -> None:
    """Eval/, Anno/ and Img/img/; columns are padded with spaces."""
    items = [(1, "train"), (2, "train"), (3, "eval"), (4, "eval")]
    rows, boxes = [], []
    for item, side in items:
        for index in range(3):
            name = f"img/WOMEN/Dresses/id_{item:08d}/0{index + 1}_1_front.jpg"
            image(folder / "Img" / name, item, index)
            status = side if side == "train" else ("query", "gallery", "gallery")[index]
            rows.append(f"{name:<80} id_{item:08d}    {status}")
            boxes.append(f"{name:<80} 1  1  010 012 040 052")
    heads = ("image_name item_id evaluation_status",)
    lines(folder / "Eval" / "list_eval_partition.txt", [str(len(rows)), *heads, *rows])
    heads = ("image_name clothes_type pose_type x_1 y_1 x_2 y_2",)
    lines(folder / "Anno" / "list_bbox_inshop.txt", [str(len(boxes)), *heads, *boxes])


def aliproducts(folder: Path) -> None:
    for part, count in (("train", 3), ("val", 1)):
        images: list[dict[str, object]] = []
        for label in ("00001", "50029"):
            for index in range(count):
                name = f"{part == 'val':d}{label}{index}.jpg"
                image(folder / part / label / name, int(label), index)
                images.append({"image_id": name, "class_id": label})
        (folder / f"{part}.json").write_text(json.dumps({"images": images}))
    (folder / "product_tree.json").write_text("{}")


def rp2k(folder: Path) -> None:
    """Class names are the shops' own, in Chinese; macOS leaves its marks."""
    for part, count in (("train", 3), ("test", 1)):
        for number, label in enumerate(("12大三元", "乌苏啤酒 500ml")):
            for index in range(count):
                image(folder / "all" / part / label / f"0{index}_crop.jpg", number, index)
    (folder / "all" / "train" / "12大三元" / "._00_crop.jpg").write_bytes(b"Mac OS X")
    (folder / "all" / ".DS_Store").write_bytes(b"Bud1")


def grocery_store(folder: Path) -> None:
    """Three classes: a phone image on each side, and one of the shop's catalogue."""
    root = folder / "GroceryStoreDataset" / "dataset"
    classes = []
    for number, name in enumerate(("Apple", "Leek", "Milk")):
        for place in (f"train/{name}/a.jpg", f"val/{name}/b.jpg", f"iconic/{name}.jpg"):
            (root / place).parent.mkdir(parents=True, exist_ok=True)
            draw_product(number, len(place), 20 + number).save(root / place)
        classes.append([name, number, "x", 0, f"/iconic/{name}.jpg", ""])
    header = "Class Name (str),Class ID (int),Coarse Class Name (str),Coarse Class ID (int)"
    header += ",Iconic Image Path (str),Product Description Path (str)"
    write_csv(root / "classes.csv", header.split(","), classes)
    for part, letter in (("train", "a"), ("val", "b")):
        lines(
            root / f"{part}.txt", [f"{part}/{row[0]}/{letter}.jpg, {row[1]}, 0" for row in classes]
        )


def products10k(folder: Path) -> None:
    """The columns of the two lists stand in different orders."""
    rows = [(f"{n}.jpg", n // 3, 0) for n in range(9)]
    write_csv(folder / "train.csv", ["name", "class", "group"], rows)
    for name, label, _ in rows:
        image(folder / "train" / name, label, int(name[0]))
    tests = [(label, f"{100 + label}.jpg", "Public") for label in range(3)]
    write_csv(folder / "test_kaggletest.csv", ["class", "name", "Usage"], tests)
    for label, name, _ in tests:
        image(folder / "test" / name, label, 10)


def met(folder: Path) -> None:
    """Two queries have an exhibit, the distractors none; imagegrapher and url say nothing."""
    exhibits: list[dict[str, object]] = [
        {"id": n, "path": f"MET/{n}/{i}.jpg"} for n in (7, 449, 80001) for i in range(2)
    ]
    sets: dict[str, list[dict[str, object]]] = {
        "val": [
            {"MET_id": 449, "path": "test_met/ab12.jpg", "imagegrapher": "a", "url": "b"},
            {"category": "Paintings", "path": "test_other/cd34.jpg", "url": "b"},
        ],
        "test": [
            {"MET_id": 7, "path": "test_met/ef56.jpg", "imagegrapher": "a", "url": "b"},
            {"path": "test_noart/gh78.jpg", "url": "b"},
            {"path": "test_noart/ij90.jpg", "url": "b"},
        ],
    }
    for number, entry in enumerate([*exhibits, *sets["val"], *sets["test"]]):
        image(folder / str(entry["path"]), number // 2, number)
    truth = folder / "ground_truth"
    truth.mkdir()
    (truth / "MET_database.json").write_text(json.dumps(exhibits))
    for name, entries in sets.items():
        (truth / f"{name}set.json").write_text(json.dumps(entries))


HNM_COLUMNS = "article_id,product_code,prod_name,product_type_no,colour_group_name,detail_desc"


def hnm(folder: Path) -> None:
    """Ids begin with zeros; the last article has no image."""
    rows = []
    for product, name in (("0108775", "Strap top"), ("0110065", "OP T-shirt (Idro)")):
        for variant in (15, 44, 51):
            article = f"{product}{variant:03d}"
            rows.append([article, product, name, 253, "Black", 'With "straps",\nin jersey'])
            image(folder / "images" / article[:3] / f"{article}.jpg", int(product), variant)
    (folder / "images" / "011" / "0110065051.jpg").unlink()
    write_csv(folder / "articles.csv", HNM_COLUMNS.split(","), rows)
    write_csv(folder / "customers.csv", ["customer_id"], [["0000"]])


def finefood(folder: Path) -> None:
    """Train.tar, Val.tar and the lists of label.zip."""
    for part, table, count in (("Train", "train_finetune", 3), ("Val", "val_finetune", 1)):
        rows = []
        for label in (0, 1, 999):
            for index in range(count):
                image(folder / part / str(label) / f"{index}a.jpg", label, index)
                rows.append(f"{label}/{index}a.jpg {label}")
        lines(folder / "label" / f"{table}.txt", rows)


def shopee(folder: Path) -> None:
    rows = []
    for group in (249114794, 2937985045):
        for index in range(3):
            name = f"000{index}a68f6f02f5f18d0086720b9b{group % 100}.jpg"
            image(folder / "train_images" / name, group % 100, index)
            title = f'Paper Bag Victoria Secret, "{group}"'
            rows.append([f"train_{group}{index}", name, "94974f937d4c2433", title, group])
    header = ["posting_id", "image", "image_phash", "title", "label_group"]
    write_csv(folder / "train.csv", header, rows)
    write_csv(folder / "test.csv", header[:-1], [["test_1", "x.jpg", "ecc292392dc7687a", "x"]])


def inaturalist_2021(folder: Path) -> None:
    """COCO's form; places that are unknown are NaN, which JSON does not have."""
    names = ("02912_Animalia_Chordata_Aves_Apis_mellifera", "09985_Plantae_Rosa_canina")
    for part, count in (("train", 3), ("val", 1)):
        images: list[dict[str, object]] = []
        annotations: list[dict[str, object]] = []
        for label, directory in zip((2912, 9985), names, strict=True):
            for index in range(count):
                number = 1000 + len(images)
                name = f"{part}/{directory}/{number:08x}-6f93-4b87.jpg"
                image(folder / name, label, index)
                place = {"latitude": float("nan"), "longitude": 4.25, "location_uncertainty": None}
                images.append({"id": number, "file_name": name, "rights_holder": 'a "b"', **place})
                annotations.insert(0, {"id": number, "image_id": number, "category_id": label})
        categories = [
            {"id": 2912, "name": "Apis mellifera", "common_name": "Western Honey Bee"},
            {"id": 9985, "name": "Rosa canina", "common_name": ""},
        ]
        content = {"images": images, "categories": categories, "annotations": annotations}
        (folder / f"{part}.json").write_text(json.dumps(content))


def food101(folder: Path) -> None:
    """Lists name images without their suffix."""
    for part, numbers in (("train", (1, 2)), ("test", (3,))):
        names = [
            f"{dish}/{n}0{k}" for k, dish in enumerate(("apple_pie", "waffles")) for n in numbers
        ]
        lines(folder / "food-101" / "meta" / f"{part}.txt", names)
        for number, name in enumerate(names):
            image(folder / "food-101" / "images" / f"{name}.jpg", number, len(part))


def glr(folder: Path) -> None:
    """Two landmarks in the index; a query of each, one of both, one of none."""
    index = {"0123": 7, "01ff": 7, "a1b2": 9}
    write_csv(folder / "index_image_to_landmark.csv", ["id", "landmark_id"], index.items())
    queries = {"b0b0": "0123 01ff", "b0c0": "a1b2", "c0c0": "0123 a1b2", "c0d0": "None"}
    rows = [[query, images, "Public"] for query, images in queries.items()]
    write_csv(folder / "retrieval_solution_v2.1.csv", ["id", "images", "Usage"], rows)
    for part, names in (("index", index), ("test", queries)):
        for number, name in enumerate(names):
            image(folder / part / name[0] / name[1] / name[2] / f"{name}.jpg", number, len(part))


def glr_train(folder: Path, cleaned: bool) -> None:
    """Two landmarks to train on; the cleaned list leaves an image of the first out."""
    landmarks = {"0abc": 5, "0abd": 5, "1def": 5, "2f00": 6}
    rows = [[name, f"http://x/{name}", landmark] for name, landmark in landmarks.items()]
    write_csv(folder / "train.csv", ["id", "url", "landmark_id"], rows)
    if cleaned:
        rows = [[5, "0abc 0abd"], [6, "2f00"]]
        write_csv(folder / "train_clean.csv", ["landmark_id", "images"], rows)
    for number, name in enumerate(landmarks):
        image(folder / "train" / name[0] / name[1] / name[2] / f"{name}.jpg", number, 5)


def pack(paths: Iterable[Path], archive: Path) -> None:
    """Move files and folders into an archive; its name says of which kind it is."""
    folder = archive.with_name("packed")
    folder.mkdir(parents=True)
    for path in paths:
        shutil.move(path, folder)
    kind = {".zip": "zip", ".tar": "tar"}.get(archive.suffix, "gztar")
    Path(shutil.make_archive(str(folder), kind, folder)).rename(archive)
    shutil.rmtree(folder)

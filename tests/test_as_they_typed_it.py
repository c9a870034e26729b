"""What the README files of the systems people come from tell them to type, typed here.

Commands and snippets stand as they are published, placeholders filled in. Where a system keeps its
files elsewhere, :data:`PLACES` says where they are here. Data and models are small; each command
runs to its end. docs/coming_from.md has the same tables for people. The winner's five
scripts are typed in tests/dataset/dataset_creation_steps/test_five_commands.py.
"""

import importlib
import os
import re
import shlex
import shutil
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from my_submission import to_torchscript
from tests.commands import ran, told
from tests.conftest import PROJECT, draw_product, spare_plots, write_csv
from visual_search.config_reader import read_config

PLACES = {
    "tools/train.py": "visual_search.main_arcface",
    "data/prepare_dataset.py": "dataset.prepare_dataset",
    "data/generate_dataset_info.py": "dataset.generate_dataset_info",
    "data/filter_dataset_info.py": "dataset.filter_dataset_info",
    "data/get_kfold_split.py": "dataset.get_kfold_split",
}
"""By what a system's README calls, the module that is called here, where the name is another."""
TINY = "name: timm/test_efficientnet\nweights: none\n"
SMALL = "--backbone.name timm/test_efficientnet --backbone.weights none --dataset.input_size 32"
QUICK = "--dataset.batch_size 6 --dataset.num_workers 0 --train.epochs 1 --train.compile false"


def typed(line: str, *more: object) -> str:
    """Run a published command in this folder, and give back what it prints."""
    words = shlex.split(line)
    words = words[words.index("python") + 1 :]
    program, rest = (words[1], words[2:]) if words[0] == "-m" else (words[0], words[1:])
    return told(importlib.import_module(PLACES.get(program, program)).main, *rest, *more)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to type in, with the project's configs and the smallest of networks."""
    shutil.copytree(PROJECT / "config", tmp_path / "config")
    for name in ("openclip_vit_b32", "convnext_xxlarge", "efficientnetv2_b1"):
        (tmp_path / "config" / "backbone" / f"{name}.yml").write_text(TINY)
    monkeypatch.chdir(tmp_path)
    spare_plots(monkeypatch)
    return tmp_path


# The challenge's winner.

DATASET = """
dataset:
    product10k:
        train_valid_root: '<path_to_Product10K_dir>'
        train_prefix: 'train/'
        train_list: 'train.csv'
        val_prefix: 'test/'
        val_list: 'test_kaggletest.csv'

    dev_set:
        eval_root: "<path_to_development_test_data>"
        gallery: 'gallery.csv'
        queries: 'queries.csv'

    seed: 42
    num_of_classes: 9700
    input_size: 224
    batch_size: 48
    augmentations: 'default'
    augmentations_valid: 'default'
    num_workers: 8
"""
AMAZON = """
    amazon_review:
        root: '<path_to_Amazon-review_dir>'
        prefix: 'images_mean_50k/'
        list: 'amazon_review_mean_06_full_images.csv'
"""


@pytest.fixture
def challenge(here: Path, product10k_folder: Path, dev_folder: Path) -> Path:
    """A config that begins with the published section; Amazon's layout beside Product10K."""
    folder = here / "Amazon-review"
    (folder / "images_mean_50k").mkdir(parents=True)
    rows = []
    for product in range(3):
        for photo in range(2):
            name = f"{product}_{photo}.png"
            draw_product(40 + product, photo).save(folder / "images_mean_50k" / name)
            rows.append([name, product])
    for threshold in ("05", "06"):
        name = f"amazon_review_mean_{threshold}_full_images.csv"
        write_csv(folder / name, ["image_path", "label"], rows)
    text = DATASET.replace("<path_to_Product10K_dir>", f"{product10k_folder}/")
    text = text.replace("<path_to_development_test_data>", str(dev_folder))
    path = here / "config" / "theirs.yml"
    path.write_text(text)
    return path


def test_their_sections_train_as_they_stand(challenge: Path, here: Path) -> None:
    text = challenge.read_text() + AMAZON.replace("<path_to_Amazon-review_dir>", "Amazon-review/")
    challenge.write_text(text)
    said = typed(
        f"python -m visual_search.main_arcface --config {challenge} --name xbm_1st {SMALL} {QUICK} "
        "--pairs config/pairs/xbm.yml --margin.weight 0 --dataset.sampler.kind m-per-class"
    )
    assert "30 images of 9 classes" in said
    config = read_config(here / "runs/xbm_1st").dataset
    assert (config.seed, config.num_of_classes, config.augmentations) == (42, 9700, "default")
    assert "val_prefix is test/, which changes nothing: dataset.train_on_test is false" in said


@pytest.mark.slow
def test_their_five_phases_from_the_first_to_the_export(challenge: Path, here: Path) -> None:
    (here / "dataset").mkdir()
    sources = [here / "Product10K", here / "development_test_data"]
    for source in (*sources, *(here / "Amazon-review").iterdir()):
        (here / "dataset" / source.name).symlink_to(source)
    for phase in ("arcface_1st", "arcface_2nd", "xbm_1st", "xbm_2nd", "xbm_3st"):
        line = f"python -m visual_search.main_arcface --config config/{phase}.yml --name {phase} "
        small = f"{QUICK} --train.precision no --dataset.input_size 32"
        small += " --pairs.memory 12" if "xbm" in phase else ""
        assert "done: mAP" in typed(line + small)
    said = told(to_torchscript.main, "runs/xbm_3st", "--output", "weights")
    assert "ranks by swapped_dba(" in said


# Easy metric learning.


@pytest.fixture
def classes(here: Path) -> Path:
    """`dataset_folder/class_1/image1.jpg` and so on."""
    for number in range(8):
        folder = here / "dataset_folder" / f"class_{number}"
        folder.mkdir(parents=True)
        for photo in range(6 if number else 2):
            draw_product(number, photo).save(folder / f"image{photo}.png")
    return here / "dataset_folder"


def test_their_own_folder_from_pictures_to_splits(classes: Path) -> None:
    typed(f"python data/generate_dataset_info.py --dataset_path {classes} --hashes")
    info = classes / "dataset_info.csv"
    typed(f"python data/filter_dataset_info.py --dataset_info {info} --dedup")
    assert (classes / "dataset_info_filtered.csv").is_file()
    typed(f"python data/get_kfold_split.py --dataset_info {info}")
    for name in ("folds", "folds_train_only", "folds_test_only"):
        assert (classes / f"{name}.csv").is_file()
    typed(f"python data/get_kfold_split.py --dataset_info {info} --split_type minmax")
    typed(
        f"python data/get_kfold_split.py --dataset_info {info} --split_type freq --test_ratio 0.2 "
        "--min_freq 5 --random_seed 3"
    )


@pytest.fixture
def shops(here: Path, classes: Path) -> Path:
    """In-Shop and Products-10K, prepared: tables of the same pictures, half of the classes test."""
    rows = []
    for path in sorted(classes.glob("*/*.png")):
        label = path.parent.name
        rows.append([f"{label}/{path.name}", label, int(label > "class_3")])
    for name in ("inshop", "products10k"):
        folder = here / "dataset" / name
        shutil.copytree(classes, folder)
        write_csv(folder / "dataset_info.csv", ["file_name", "label", "is_test"], rows)
    return here / "dataset"


def test_their_example_trains_as_it_stands(shops: Path, here: Path) -> None:
    said = typed(
        "python tools/train.py backbone=openclip_vit_b32 dataset=inshop "
        "evaluation/data=products10k batch_size=32 epochs=10",
        *("batch_size=8", "epochs=1", "img_size=32", "num_workers=0"),
    )
    run = here / "runs" / "openclip_vit_b32_inshop_products10k"
    assert f"checkpoint {run.relative_to(here)}/best" in said
    config = read_config(run)
    assert config.backbone.name == "timm/test_efficientnet"
    assert config.dataset.tables[0].file == "dataset/inshop/dataset_info.csv"
    assert config.dataset.dev_set.table == "dataset/products10k/dataset_info.csv"
    assert (config.dataset.batch_size, config.train.epochs) == (8, 1)
    assert (config.margin.name, config.neck.kind) == ("arcface", "dropout-linear-bn")


@pytest.mark.slow
def test_their_example_under_accelerate_launch(shops: Path, here: Path) -> None:
    """`accelerate launch tools/train.py backbone=openclip_vit_l {and other …}`."""
    (here / "config" / "backbone" / "openclip_vit_l.yml").write_text(TINY)
    line = (
        "accelerate launch --num_processes 1 -m visual_search.main_arcface backbone=openclip_vit_l "
        "dataset=inshop batch_size=8 epochs=1 img_size=32 num_workers=0"
    )
    program = Path(sys.executable).with_name("accelerate")
    environment = os.environ | {"PYTHONPATH": str(PROJECT), "ACCELERATE_USE_CPU": "true"}
    done = ran(program, *shlex.split(line)[1:], cwd=here, env=environment)
    assert done.returncode == 0, done.stderr
    assert (here / "runs" / "openclip_vit_l_inshop" / "best" / "model.json").is_file()


def test_the_parts_are_there_by_the_names_they_had() -> None:
    names = {
        "dataset": "sop cars196 cub200 inshop aliproducts rp2k products10k met hnm finefood shopee "
        "inaturalist_2021",
        "backbone": "efficientnetv2_b1 openclip_vit_b32 openclip_vit_l unicom_vit_b32 "
        "convnext_tiny",
        "margin": "softmax arcface adacos adaface combined cosface curricularface elasticface "
        "sphereface subcenter_arcface",
    }
    for part, wanted in names.items():
        there = {path.stem for path in (PROJECT / "config" / part).glob("*.yml")}
        assert set(wanted.split()) <= there


# The environment of all of them.


def test_the_conda_environment_installs_what_there_is() -> None:
    values = yaml.safe_load((PROJECT / "environment.yml").read_text())
    (pip,) = [part["pip"] for part in values["dependencies"] if isinstance(part, dict)]
    (extras,) = re.findall(r"--editable \.\[([\w,-]+)\]", " ".join(pip))
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
    assert set(extras.split(",")) <= set(project["optional-dependencies"])
    assert "python=3.12" in values["dependencies"]

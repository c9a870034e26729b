"""Numbers out of range are refused by every tool, by option and range, before any work."""

from importlib import import_module

import pytest

TABLE = ("--dataset_info", "t.csv")
CASES = [
    ("get_kfold_split", TABLE, "--k", ("1", "-1", "1e3", "two"), "2 or more"),
    ("get_kfold_split", TABLE, "--random_seed", ("-3", "0.5"), "0 or more"),
    ("get_train_test_split", TABLE, "--min_freq", ("-1",), "0 or more"),
    ("get_train_test_split", TABLE, "--test_ratio", ("0", "1.1", "nan"), "above 0, at most 1"),
    ("get_train_test_split", TABLE, "--random_seed", ("-3", "nan"), "0 or more"),
    ("downsample_classes", TABLE, "--threshold", ("-1",), "0 or more"),
    ("downsample_classes", TABLE, "--max_per_class", ("-1",), "0 or more"),
    ("downsample_classes", TABLE, "--max_classes", ("-1",), "0 or more"),
    ("filter_dataset_info", TABLE, "--threshold", ("-1", "65"), "0 to 64"),
    ("filter_dataset_info", TABLE, "--min_size", ("-1",), "0 or more"),
    ("filter_dataset_info", TABLE, "--max_size", ("-1",), "0 or more"),
    ("find_leaks", ("--train", "a", "--test", "b"), "--threshold", ("-1", "65"), "0 to 64"),
    ("find_leaks", ("--train", "a", "--test", "b"), "--cosine", ("2", "nan", "x"), "-1 to 1"),
    ("find_leaks", ("--train", "a", "--test", "b"), "--fold", ("-2", "1.5"), "-1 or more"),
    ("generate_dataset_info", ("--dataset_path", "."), "--min_images", ("0",), "1 or more"),
    ("generate_dataset_info", ("--dataset_path", "."), "--workers", ("-1",), "0 or more"),
    ("prepare_dataset", ("--dataset=sop", "--save_path=x"), "--workers", ("-1",), "0 or more"),
]


@pytest.mark.parametrize(("tool", "needed", "option", "values", "wanted"), CASES)
def test_numbers_out_of_range(
    tool: str,
    needed: tuple[str, ...],
    option: str,
    values: tuple[str, ...],
    wanted: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    parse = import_module(f"dataset.{tool}").parse_arguments
    for value in (*values, "1" + "0" * 18):
        with pytest.raises(SystemExit) as caught:
            parse([*needed, f"{option}={value}"])
        assert caught.value.code == 2
        said = capsys.readouterr().err
        kind = "number" if option in ("--cosine", "--test_ratio") else "whole number"
        assert f"argument {option}: '{value}' is no {kind}, {wanted}" in said

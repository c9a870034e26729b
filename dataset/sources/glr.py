"""Google Landmarks v2 (Weyand et al. 2020): training photos, and queries against the index."""

from __future__ import annotations

from collections.abc import Iterator

from dataset.sources.base import DataSet, Files, csv_records
from visual_search.data.dataset_info import InfoRow

INDEX = "index_image_to_landmark.csv"
SOLUTION = "retrieval_solution_v2.1.csv"
TRAIN, CLEANED = "train.csv", "train_clean.csv"
PARTS = ("train", "retrieval")


def read(files: Files) -> Iterator[InfoRow]:
    """The training images, where there is a list of them, then index and queries, the same.

    Of the two lists of training images the cleaned one is taken where it is there.
    """
    trains = files.has(TRAIN) or files.has(CLEANED)
    if files.part == "train" or (not files.part and trains):
        yield from _training(files)
    if files.part == "retrieval" or (not files.part and (files.has(INDEX) or not trains)):
        yield from _retrieval(files)


def _training(files: Files) -> Iterator[InfoRow]:
    """By landmark: an image a line, or, in the cleaned list, a landmark a line."""
    cleaned = files.has(CLEANED)
    columns = ["landmark_id", "images" if cleaned else "id"]
    for record in csv_records(files.file(CLEANED, TRAIN), columns):
        for image in record[columns[1]].split():
            path = files.image(_place("train", image))
            yield InfoRow(path, record["landmark_id"], evaluation_status="train")


def _retrieval(files: Files) -> Iterator[InfoRow]:
    """The images of the index, then the queries; both by landmark.

    The solution lists images of each query. A query is given their landmark; one that nothing is
    listed for gets a label of its own (a distractor), and so does one with images of several
    landmarks or of none: by class its answer cannot be said.
    """
    landmark_of: dict[str, str] = {}
    for record in csv_records(files.file(INDEX), ["id", "landmark_id"]):
        image = record["id"]
        landmark_of[image] = record["landmark_id"]
        path = files.image(_place("index", image))
        yield InfoRow(path, landmark_of[image], evaluation_status="gallery", is_test=True)
    for record in csv_records(files.file(SOLUTION, "retrieval_solution.csv"), ["id", "images"]):
        query = record["id"]
        landmarks = {landmark_of.get(image) for image in record["images"].split()}
        label = landmarks.pop() if len(landmarks) == 1 else None
        yield InfoRow(
            files.image(_place("test", query)),
            f"no_match/{query}" if label is None else label,
            evaluation_status="query",
            is_test=True,
        )


def _place(part: str, image: str) -> str:
    """Folders are named after the first three letters of an id."""
    return f"{part}/{image[0]}/{image[1]}/{image[2]}/{image}.jpg"


DATA_SET = DataSet(
    title="Google Landmarks v2",
    page="https://github.com/cvdfoundation/google-landmark",
    layout=f"train/ (train/0/1/2/012….jpg) with {CLEANED} or {TRAIN}; index/ and test/, the same, "
    f"with {INDEX} and {SOLUTION}",
    read=read,
    columns=("evaluation_status",),
    archives={"landmark-retrieval-*.zip": "index"},
    parts=PARTS,
)

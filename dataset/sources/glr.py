"""Google Landmarks v2, retrieval: queries against the index (Weyand et al. 2020)."""

from __future__ import annotations

from collections.abc import Iterator

from dataset.sources.base import DataSet, Files, csv_records
from visual_search.data.dataset_info import InfoRow

INDEX = "index_image_to_landmark.csv"
SOLUTION = "retrieval_solution_v2.1.csv"


def read(files: Files) -> Iterator[InfoRow]:
    """The images of the index, then the queries; both by landmark.

    The solution lists images of each query. A query is given their landmark; one that nothing is
    listed for gets a label of its own (a distractor), and so does one with images of several
    landmarks or of none: by class its answer cannot be said.
    """
    landmark_of: dict[str, str] = {}
    for record in csv_records(files.file(INDEX), ["id", "landmark_id"]):
        image = record.values["id"]
        landmark_of[image] = record.values["landmark_id"]
        path = files.image(_place("index", image))
        yield InfoRow(path, f"glr/{landmark_of[image]}", evaluation_status="gallery", is_test=True)
    for record in csv_records(files.file(SOLUTION, "retrieval_solution.csv"), ["id", "images"]):
        query = record.values["id"]
        landmarks = {landmark_of.get(image) for image in record.values["images"].split()}
        label = landmarks.pop() if len(landmarks) == 1 else None
        yield InfoRow(
            files.image(_place("test", query)),
            f"glr/no_match/{query}" if label is None else f"glr/{label}",
            evaluation_status="query",
            is_test=True,
        )


def _place(part: str, image: str) -> str:
    """Folders are named after the first three letters of an id."""
    return f"{part}/{image[0]}/{image[1]}/{image[2]}/{image}.jpg"


DATA_SET = DataSet(
    name="glr",
    title="Google Landmarks v2, retrieval",
    page="https://github.com/cvdfoundation/google-landmark",
    layout=f"index/ and test/, unpacked (index/0/1/2/012….jpg), {INDEX} and {SOLUTION}",
    read=read,
    columns=("evaluation_status",),
    archives={"landmark-retrieval-*.zip": "index"},
)

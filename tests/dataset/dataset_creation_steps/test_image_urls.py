from __future__ import annotations

import pytest

from dataset.dataset_creation_steps.reviews import sized_image, stored_image, unique_photos

HOST = "https://images-na.ssl-images-amazon.com/images/I/"


@pytest.mark.parametrize(
    "name",
    [
        "71eG75FTJJL._SY88.jpg",
        "71eG75FTJJL._SL500_.jpg",
        "71eG75FTJJL._SX38_SY50_CR,0,0,38,50_.jpg",
        "71eG75FTJJL.jpg",
    ],
)
def test_any_size_of_a_photo_is_the_same_photo(name: str) -> None:
    assert stored_image(HOST + name) == HOST + "71eG75FTJJL.jpg"
    assert sized_image(HOST + name, 500) == HOST + "71eG75FTJJL._SL500_.jpg"
    assert sized_image(HOST + name, 0) == HOST + "71eG75FTJJL.jpg"


@pytest.mark.parametrize(
    "url",
    ["http://shop.example/photo._SY88.jpg", HOST + "x.jpg?size=2", "file:///images/I/x.jpg", ""],
)
def test_other_addresses_stay_as_they_are(url: str) -> None:
    assert sized_image(url, 500) == stored_image(url) == url


def test_ids_with_signs_are_kept_whole() -> None:
    assert sized_image(HOST + "41+aB-%2B_L._SS40_.jpg", 500) == HOST + "41+aB-%2B_L._SL500_.jpg"


def test_a_photo_in_two_sizes_counts_once() -> None:
    urls = [HOST + "b.jpg", HOST + "a._SS40_.jpg", HOST + "a.jpg", "http://x/y.jpg"]
    assert unique_photos(urls) == ["http://x/y.jpg", HOST + "a._SS40_.jpg", HOST + "b.jpg"]

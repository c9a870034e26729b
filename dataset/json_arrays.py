"""Reading JSON annotation files of gigabytes: one item of an array at a time."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from visual_search.errors import UserError

CHUNK = 1 << 20
# Where no item ends within this many characters the file is damaged, rather than its item long.
LONGEST_ITEM = 1 << 26
_SPACE = re.compile(r"[ \t\r\n]*")


def array_items(path: Path, key: str | None = None) -> Iterator[dict[str, Any]]:
    """The objects of one array of a JSON file, in memory one by one.

    The standard library's decoder reads each item, so that `NaN` is understood: annotation files
    have it although JSON does not, and streaming libraries refuse it.

    Args:
        path: the file, UTF-8.
        key: the array's name in the object that the file holds; None: the file is the array.

    Raises:
        UserError: naming the file, and the character at which it is damaged or ends; when the
            array is missing, and when an item of it is no object.
    """
    try:
        with path.open(encoding="utf-8-sig") as handle:
            found = False
            for name, item in _Reader(handle, path).members(whole_is_array=key is None):
                if name != key:
                    continue
                found = True
                if item is _EMPTY:
                    continue
                if not isinstance(item, dict):
                    raise UserError(f"{path}: {key or 'the list'} holds {str(item)[:40]!r}")
                yield item
    except FileNotFoundError:
        raise UserError(f"{path} does not exist") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text: {error}") from error
    if not found:
        raise UserError(f"{path} has no list {key!r}")


# Stands for "there is such an array, and nothing is in it".
_EMPTY = object()


class _Reader:
    """A window of text that slides over the file."""

    def __init__(self, handle: TextIO, path: Path) -> None:
        self.handle, self.path = handle, path
        self.text, self.at, self.passed = "", 0, 0
        self.decoder = json.JSONDecoder()

    def members(self, whole_is_array: bool) -> Iterator[tuple[str | None, Any]]:
        """Name and item of every array, and name and value of everything else."""
        if whole_is_array:
            self.expect("[")
            yield from self.items(None)
        else:
            self.expect("{")
            yield from self.named_values()
        if self.peek():
            raise self.damaged("it goes on behind its end")

    def named_values(self) -> Iterator[tuple[str | None, Any]]:
        if self.peek() == "}":
            self.at += 1
            return
        while True:
            name = self.value()
            self.expect(":")
            if self.peek() == "[":
                self.at += 1
                yield from self.items(name)
            else:
                yield name, self.value()
            if self.expect(",}") == "}":
                return

    def items(self, name: str | None) -> Iterator[tuple[str | None, Any]]:
        if self.peek() == "]":
            self.at += 1
            yield name, _EMPTY
            return
        while True:
            yield name, self.value()
            if self.expect(",]") == "]":
                return

    def value(self) -> Any:
        self.peek()
        while True:
            try:
                value, end = self.decoder.raw_decode(self.text, self.at)
            except json.JSONDecodeError as error:
                place = self.passed + error.pos
                if len(self.text) - self.at > LONGEST_ITEM or not self.more():
                    raise self.damaged(error.msg, place) from None
                continue
            # A number at the very end of the window may go on behind it, as `-0` of `-0.5e+3`.
            length = end - self.at
            if end + 3 <= len(self.text) or not self.more():
                self.at += length
                return value

    def peek(self) -> str:
        """The next character that is no space, "" at the end of the file."""
        while True:
            space = _SPACE.match(self.text, self.at)
            self.at = space.end() if space else self.at
            if self.at < len(self.text) or not self.more():
                return self.text[self.at : self.at + 1]

    def expect(self, characters: str) -> str:
        found = self.peek()
        if not found or found not in characters:
            raise self.damaged(f"expected {' or '.join(characters)}")
        self.at += 1
        return found

    def more(self) -> bool:
        """Move the window on; False at the end of the file."""
        # An item longer than the window doubles it, so that no length costs quadratic time.
        chunk = self.handle.read(max(CHUNK, len(self.text) - self.at))
        self.passed += self.at
        self.text, self.at = self.text[self.at :] + chunk, 0
        return bool(chunk)

    def damaged(self, why: str, place: int | None = None) -> UserError:
        if place is None:
            place = self.passed + self.at
        cut = not self.more() and self.text.rstrip()[-1:] not in ("}", "]")
        return UserError(
            f"{self.path} is damaged near character {place}: {why}"
            + ("; it is cut off, get it again" if cut else "")
        )

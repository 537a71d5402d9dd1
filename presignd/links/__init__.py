"""``links.jsonl``, which has every link: append and rotate (``LinksFile``), read and follow (``read``, ``follow``).

One JSON object a line; the newest file has no number, older ones are ``.1`` (the newest of them) to ``.<keep>``. A
line counts once it ends in a newline: readers ignore what comes after the last one.
"""

from presignd.links.format import Cursor, encode, load_cursor, save_cursor
from presignd.links.reader import answer_links, follow, last_links, read
from presignd.links.writer import LinksFile

__all__ = [
    "Cursor",
    "LinksFile",
    "answer_links",
    "encode",
    "follow",
    "last_links",
    "load_cursor",
    "read",
    "save_cursor",
]

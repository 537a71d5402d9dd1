"""The links file ``links.jsonl``: append and rotate (``LinksFile``), read back and follow (``read``, ``follow``).

One JSON object a line, the newest file without a number, older ones as ``.1`` (the newest of them) to
``.<keep>``. A line that ends in a newline is whole: readers never look at anything after the last one.
"""

from presignd.links.answers import links_answers
from presignd.links.cursor import Cursor, load_cursor, save_cursor
from presignd.links.format import encode
from presignd.links.last import last_links
from presignd.links.reader import follow, read
from presignd.links.writer import LinksFile

__all__ = [
    "Cursor",
    "LinksFile",
    "encode",
    "follow",
    "last_links",
    "links_answers",
    "load_cursor",
    "read",
    "save_cursor",
]

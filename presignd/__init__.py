"""Drop a file in a folder, get a link.

watch → settle → ledger → presign → upload → verify → link → finish
"""

__version__ = "0.1.0"

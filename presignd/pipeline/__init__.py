"""watch → settle → ledger → presign → upload → verify → link → finish: what happens to a file.

Each stage has a folder here: watch, settle, upload (also verify) and finish (also link). They access files only through
``files``.
"""

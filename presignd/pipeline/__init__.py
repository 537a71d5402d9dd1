"""watch → settle → ledger → presign → upload → verify → link → finish: what happens to a file.

The stages are the folders watch, settle, upload (it verifies, too) and finish (it writes the link, too). They access
files only through the folder files.
"""

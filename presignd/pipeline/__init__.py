"""The way of a file: watch → settle → ledger → presign → upload → verify → link → finish.

The folders watch, settle, upload (which verifies too) and finish (which links too) are stages; all access to files
goes through files.
"""

"""Inboxes: what came in by an invitation lands in a folder.

A poll lists what came in (``inbox``); each file is recorded, downloaded (``fetch``), compared, and placed (``folder``)
under a safe name (``names``); then the broker is told. The broker's list is the queue: what it lists again is continued
from where the ledger says that it stands, so a start needs no step of its own.
"""

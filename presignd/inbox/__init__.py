"""Inboxes: bring files that came in by an invitation into a folder.

A poll lists them (``inbox``); each file is recorded, downloaded (``fetch``), compared, placed (``folder``) under a safe
name (``names``), and acknowledged to the broker. The broker's list is the queue: a file that it lists again is
continued from its state in the ledger, so a start needs no special step.
"""

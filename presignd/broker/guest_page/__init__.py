"""The page of an invitation, where guests drop files. The browser's part, in ``web/``, is plain JavaScript."""

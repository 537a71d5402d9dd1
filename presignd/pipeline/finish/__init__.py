"""link, finish: the link's line, then the file is kept, moved or deleted."""

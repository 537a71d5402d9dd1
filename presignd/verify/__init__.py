"""``presignd verify``: compare files with the objects that the store holds now."""

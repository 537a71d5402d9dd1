"""The stages link and finish: write the link's line, then keep, move or delete the file."""

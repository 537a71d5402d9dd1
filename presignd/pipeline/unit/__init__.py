"""A folder that gets one link as a whole: gather its files, write its manifest, link it, finish its files."""

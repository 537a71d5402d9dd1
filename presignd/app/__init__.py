"""The daemon: built in ``assembly``, supervised in ``daemon``."""

"""The daemon: built in one place, supervised in another."""

"""The stages upload and verify: send a claimed version under its key, and compare the file with what was sent."""

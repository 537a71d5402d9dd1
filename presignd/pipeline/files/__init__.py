"""The files of a watch: opened by descriptor below its root, ignored, renamed, hashed."""

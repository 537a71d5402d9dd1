"""The operating system: filesystems, threads, who owns a file."""

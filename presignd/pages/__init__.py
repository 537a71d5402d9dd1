"""What presignd's pages share, the status page and the broker's: HTML, style, script, login, the live stream."""

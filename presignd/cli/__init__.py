"""The commands: the only code that parses arguments, sets up logging and picks exit codes."""


def main() -> None:
    """Run the ``presignd`` command."""

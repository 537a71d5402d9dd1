"""``python -m presignd`` is the ``presignd`` command."""

from presignd.cli import main

if __name__ == "__main__":
    main()

"""The entry point of the ``presignd`` command and of ``python -m presignd``."""

import gc
import os
import sys

from presignd.runtime import signals


def main() -> None:
    """Run the ``presignd`` command; of a service, signals are held before anything slow is imported."""
    if sys.argv[1:2] == ["run"] or sys.argv[1:3] == ["broker", "run"]:
        signals.hold()
        gc.set_threshold(200_000)  # what is imported stays; ``cli.loop.run_daemon`` sets the threshold of the run
        # Looking for plugins, pydantic would read the metadata of every installed package. A service runs no command
        # that could inherit this.
        os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
    try:
        from presignd.cli import main as command  # noqa: PLC0415 - it takes a second on a busy machine
    except KeyboardInterrupt:  # in any other command: nothing has begun yet
        sys.exit(130)  # errors.ExitCode.INTERRUPTED
    command()


if __name__ == "__main__":
    main()

"""``presignd web``: the status page's address."""

from presignd.cli import loop, show
from presignd.cli.one import only
from presignd.cli.options import AsJson, ConfigFile


def web_command(as_json: AsJson = False, config: ConfigFile = None) -> None:
    """Print an address of the status page, to log in with.

    It is good once, for five minutes: whoever opens it sees links and may retry files. It is for root, the
    daemon's user, and the links group. The page is off until web.listen is set. Programs send the token of
    web.token_file as Authorization: Bearer.

    Example: xdg-open "$(presignd web)"
    """
    found = loop.run(only({"op": "web"}, config))
    if as_json:
        show.document(found, as_is=True)
    else:
        show.result(found["url"], as_is=True)

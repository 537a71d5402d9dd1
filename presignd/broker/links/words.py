"""The texts of the pages for strangers, in each language. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Words:
    """One language. ``why`` has for each reason the title of its page and what to do.

    ``left`` and ``page`` take two counts, ``files`` one.
    """

    language: str
    wrong_pin: str
    open: str
    download: str
    known: str
    size: str
    type: str
    folder: str
    shared_by: str
    until: str
    downloads_left: str
    left: str
    holds: str
    file: str
    files: str
    list: str
    pages: str
    page: str
    previous: str
    next: str
    why: Mapping[str, tuple[str, str]]


_ANEW = "Ask whoever sent it for a new one."
_NEU = "Bitten Sie den Absender um einen neuen."

ENGLISH = Words(
    language="en",
    wrong_pin="This PIN is wrong.",
    open="Open",
    download="Download",
    known="You have opened this link before. Opening it again is not counted.",
    size="Size",
    type="Type",
    folder="folder",
    shared_by="Shared by",
    until="Until",
    downloads_left="Downloads left",
    left="{} of {}",
    holds="Holds",
    file="1 file",
    files="{:,} files",
    list="The list as JSON, with checksums",
    pages="Pages",
    page="Page {} of {}",
    previous="Previous",
    next="Next",
    why={
        "unknown": ("There is no such link", "Check that the address is complete, or ask whoever sent it."),
        "expired": ("This link has expired", _ANEW),
        "revoked": ("This link was revoked", _ANEW),
        "used_up": ("This link is used up", f"It was made for a limited number of downloads. {_ANEW}"),
        "no_such_file": ("There is no such file", "The folder that this link opens has no file of this name."),
        "no_manifest": (
            "The files can't be listed",
            "The list of this folder's files is missing, too long or damaged. Ask whoever sent the link.",
        ),
        "too_many_tries": ("Too many tries", "Wait a while, then try again."),
        "state_unreachable": ("Links can't be opened now", "The link is not lost. Try again in a moment."),
        "no_form": ("This request is no form", "Open the address in a browser."),
        "unknown_invitation": (
            "There is no such invitation",
            "Check that the address is complete, or ask whoever sent it.",
        ),
        "invitation_ended": ("This invitation has ended", _ANEW),
        "rate_limited": ("Too many tries", "Wait a while, then try again."),
        "away": ("Invitations can't be opened now", "This invitation is not lost. Try again in a moment."),
    },
)
GERMAN = Words(
    language="de",
    wrong_pin="Diese PIN ist falsch.",
    open="\u00d6ffnen",
    download="Herunterladen",
    known="Sie haben diesen Link schon ge\u00f6ffnet. Das erneute \u00d6ffnen wird nicht gez\u00e4hlt.",
    size="Gr\u00f6\u00dfe",
    type="Typ",
    folder="Ordner",
    shared_by="Geteilt von",
    until="Bis",
    downloads_left="Downloads \u00fcbrig",
    left="{} von {}",
    holds="Enth\u00e4lt",
    file="1 Datei",
    files="{} Dateien",
    list="Die Liste als JSON, mit Pr\u00fcfsummen",
    pages="Seiten",
    page="Seite {} von {}",
    previous="Zur\u00fcck",
    next="Weiter",
    why={
        "unknown": (
            "Diesen Link gibt es nicht",
            "Pr\u00fcfen Sie, ob die Adresse vollst\u00e4ndig ist, oder fragen Sie den Absender.",
        ),
        "expired": ("Dieser Link ist abgelaufen", _NEU),
        "revoked": ("Dieser Link wurde zur\u00fcckgezogen", _NEU),
        "used_up": ("Dieser Link ist verbraucht", f"Er galt f\u00fcr eine begrenzte Zahl von Downloads. {_NEU}"),
        "no_such_file": (
            "Diese Datei gibt es nicht",
            "Der Ordner, den dieser Link \u00f6ffnet, hat keine Datei dieses Namens.",
        ),
        "no_manifest": (
            "Die Dateien k\u00f6nnen nicht aufgelistet werden",
            "Die Liste der Dateien dieses Ordners fehlt, ist zu lang oder besch\u00e4digt. Fragen Sie den Absender.",
        ),
        "too_many_tries": ("Zu viele Versuche", "Warten Sie eine Weile, und versuchen Sie es dann wieder."),
        "state_unreachable": (
            "Links k\u00f6nnen gerade nicht ge\u00f6ffnet werden",
            "Der Link ist nicht verloren. Versuchen Sie es gleich noch einmal.",
        ),
        "no_form": ("Diese Anfrage ist kein Formular", "\u00d6ffnen Sie die Adresse in einem Browser."),
        "unknown_invitation": (
            "Diese Einladung gibt es nicht",
            "Pr\u00fcfen Sie, ob die Adresse vollst\u00e4ndig ist, oder fragen Sie den Absender.",
        ),
        "invitation_ended": ("Diese Einladung ist beendet", "Bitten Sie den Absender um eine neue."),
        "rate_limited": ("Zu viele Versuche", "Warten Sie eine Weile, und versuchen Sie es dann wieder."),
        "away": (
            "Einladungen k\u00f6nnen gerade nicht ge\u00f6ffnet werden",
            "Diese Einladung ist nicht verloren. Versuchen Sie es gleich noch einmal.",
        ),
    },
)
LANGUAGES = {words.language: words for words in (ENGLISH, GERMAN)}


def words_for(accepted: str) -> Words:
    """Return the words in the language that ``Accept-Language`` prefers (RFC 9110, 12.5.4); English for any other."""
    wanted = sorted((_weighed(each) for each in accepted.split(",")), key=lambda each: -each[1])
    return next((LANGUAGES[name] for name, weight in wanted if weight > 0 and name in LANGUAGES), ENGLISH)


def _weighed(part: str) -> tuple[str, float]:
    """Return a language without its region, and its weight; an invalid weight counts as 0."""
    tag, _, weight = part.partition(";")
    try:
        value = float(weight.strip().removeprefix("q=") or 1)
    except ValueError:
        value = 0.0
    return tag.strip().lower().partition("-")[0], value

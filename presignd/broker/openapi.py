"""The broker's OpenAPI document. Its request schemas come from the models that read the requests."""

from __future__ import annotations

from typing import Any

import presignd
from presignd.broker.inbox.api import LONGEST_WAIT
from presignd.broker.inbox.wire import ACKS
from presignd.broker.invitations import request as guests
from presignd.broker.links.request import BATCH as LINK_BATCH
from presignd.broker.links.request import REVOCATION, TERMS, LinkState
from presignd.broker.wire import BATCH, MAX_GRANTS
from presignd.presign import Operation

_REF = "#/components/schemas/"

WHOLE_CALL = {
    400: ("bad_request", "The body is no valid batch; the message names the wrong field."),
    401: ("unauthorized", "No valid token, or one that has ended (token_expired)."),
    403: ("operation_refused", "The token, or the guest, may not have this; error.code says why."),
    404: ("no_such_path", "This is no id; or no link of this token has this ref (unknown_link)."),
    408: ("timeout", "The body took too long."),
    409: ("link_taken", "This id is another object's; or the file is not there (not_stored), or the ticket has ended."),
    410: ("invitation_ended", "The invitation has expired, or was revoked."),
    413: ("too_many_grants", f"More than {MAX_GRANTS} requests, or a body too large (body_too_large)."),
    415: ("unsupported_media_type", "The body is not application/json."),
    429: ("rate_limited", "Too many grants for this token: Retry-After says when to try again."),
    500: ("internal_error", "A bug; the broker's log has it."),
    503: (
        "busy",
        "Too many requests at a time, no readable credentials, tokens or state, or shutting down; see Retry-After.",
    ),
}
"""Refusals of a whole call: the usual code and description, by status."""


def _json(schema: str) -> dict[str, Any]:
    return {"application/json": {"schema": {"$ref": f"{_REF}{schema}"}}}


def _answer(words: str, schema: str, *headers: str) -> dict[str, Any]:
    found: dict[str, Any] = {"description": words, "content": _json(schema)}
    if headers:
        found["headers"] = {name: {"schema": {"type": "string"}} for name in headers}
    return found


def _refusals(*statuses: int) -> dict[str, Any]:
    headers = {401: ("WWW-Authenticate",), 429: ("Retry-After",), 503: ("Retry-After",)}
    return {str(status): _answer(WHOLE_CALL[status][1], "Refusal", *headers.get(status, ())) for status in statuses}


def _nullable(kind: str, words: str) -> dict[str, Any]:
    return {"type": [kind, "null"], "description": words}


def _object(properties: dict[str, Any], words: str) -> dict[str, Any]:
    return {"type": "object", "description": words, "properties": properties, "required": list(properties)}


_TEXTS = {"type": "array", "items": {"type": "string"}}
_TIME = {"type": "string", "format": "date-time"}

_ME = _object(
    {
        "name": {"type": "string"},
        "bucket": {"type": "string"},
        "prefix": {"type": "string", "description": "Prefix of every key."},
        "operations": _TEXTS,
        "headers": _TEXTS | {"description": "Headers it may send beside Content-*; a final * matches any end."},
        "max_size": _nullable("integer", "Bytes of the largest object."),
        "max_put_expires": {"type": "integer", "description": "Seconds; longer expiries are cut to it."},
        "max_link_expires": {"type": "integer", "description": "The same, for get."},
        "max_stable_link": _nullable("integer", "Seconds, for stable links."),
        "links_url": _nullable("string", "Where stable links open; null where this broker has none."),
        "max_grants": {"type": "integer", "description": "Most requests in one call."},
        "versions": {"type": "boolean", "description": "Whether a request may name a version_id."},
        "checksums": _TEXTS
        | {
            "description": "Algorithms of checksums that it signs. Older brokers, whose answers lack "
            "this, sign md5 and sha256, and no checksum_algorithm, checksum_type or checksum_mode."
        },
        "rate": _nullable("number", "Grants a second."),
        "valid_until": _nullable("string", "When the token ends."),
        "credential_expires_at": _nullable("string", "When the signing credential ends."),
    },
    "A token, and what it may do.",
)
_GRANT = _object(
    {
        "method": {"type": "string"},
        "url": {"type": "string", "description": "Secret: whoever has it can send the request."},
        "headers": {"type": "object", "additionalProperties": {"type": "string"}, "description": "Send exactly these."},
        "expires_at": _TIME | {"description": "The real expiry."},
        "signer_date": _TIME | {"description": "The signing date."},
    },
    "One presigned request.",
)
_LINK_PROPERTIES: dict[str, Any] = {
    "ref": {
        "type": "string",
        "description": "Names the link in lists and in the log; it does not open it. "
        "The first 12 bytes of the SHA-256 of its id, in base64url.",
    },
    **{name: {"type": "string"} for name in ("bucket", "key", "version_id", "content_type", "filename", "note")},
    "disposition": {"enum": ["attachment", "inline"]},
    "size": _nullable("integer", "Bytes."),
    "pin": {"type": "boolean", "description": "Whether it needs a PIN."},
    "max_downloads": _nullable("integer", "How often it may be opened."),
    "unit": {"type": "boolean", "description": "Whether it opens a folder, by its manifest."},
    "made_at": _TIME,
    "expires_at": _nullable("string", "When it really ends: with its token at the latest, unless it is kept."),
    "opened": {"type": "integer"},
    "opened_at": _nullable("string", "When it was opened last."),
    "state": {"enum": list(LinkState)},
}
_LISTED_LINK = _object(_LINK_PROPERTIES, "A stable link, without the id that opens it.")
_LINK = _object(
    {"url": {"type": "string", "description": "Secret: whoever has it can open the link."}, **_LINK_PROPERTIES},
    "A stable link as it was first recorded.",
)
_REFUSAL = _object(
    {"error": _object({"code": {"type": "string"}, "message": {"type": "string"}}, "A fixed code, and a message.")},
    "A refused request or call.",
)

_INVITATION = _object(
    {
        "note": {"type": "string"},
        "expires_at": _TIME,
        "max_size": _nullable("integer", "Bytes of the largest file."),
        "files_left": _nullable("integer", "How many files it still takes."),
        "bytes_left": _nullable("integer", "How many bytes it still takes."),
        "pin_needed": {"type": "boolean"},
        "checksums": _object(
            {name: {"enum": ["md5", "crc64nvme"]} for name in ("put", "parts")},
            "The algorithm that the bucket was seen to verify, of a file as one PUT and of each part.",
        ),
    },
    "What an invitation allows.",
)
_TICKET = _object(
    {
        "ticket": {"type": "string", "description": "Secret: whoever has it, and the address, can send this file."},
        "key": {"type": "string", "description": "The key of the object, which the broker made."},
        "part_size": {"type": "integer", "description": "Bytes of each part but the last; 0: send one PUT."},
    },
    "A file for which room is reserved.",
)
_RECEIPT = _object(
    {
        "received": {"const": True},
        "size": {"type": "integer"},
        "checksum": _nullable("string", "Of the object, as algorithm:hex."),
    },
    "A file that came in.",
)

_ARRIVED = _object(
    {
        "id": {"type": "string", "description": "The id by which to acknowledge it; it opens nothing."},
        "path": {"type": "string", "description": "As the guest gave it: show it as text, and never trust it."},
        "bucket": {"type": "string"},
        "key": {"type": "string"},
        "size": {"type": "integer", "description": "Bytes."},
        "content_type": {"type": "string"},
        "part_size": {"type": "integer", "description": "Bytes of each part but the last; 0: it came by one PUT."},
        "checksum": _nullable("string", "Of the object, as algorithm:hex; md5:hex-N is that of N parts."),
        "etag": {"type": "string"},
        "received_at": _TIME,
    },
    "A file that came in by an invitation.",
)

_BATCH = {
    "schema": {"$ref": f"{_REF}Batch"},
    "examples": {
        "an upload and its link": {
            "value": {
                "grants": [
                    {
                        "operation": "put",
                        "bucket": "test-bucket",
                        "key": "scanner-1/hello.txt",
                        "size": 5,
                        "checksum": "md5:5d41402abc4b2a76b9719d911017c592",
                        "content_type": "text/plain",
                        "expires": 600,
                    },
                    {"operation": "get", "bucket": "test-bucket", "key": "scanner-1/hello.txt", "expires": 86400},
                ]
            }
        }
    },
}


def _schemas() -> dict[str, Any]:
    batch, link_batch = (model.json_schema(ref_template=_REF + "{model}") for model in (BATCH, LINK_BATCH))
    revocation = REVOCATION.json_schema(ref_template=_REF + "{model}")
    files, sign = (model.json_schema(ref_template=_REF + "{model}") for model in (guests.FILES, guests.SIGN))
    found: dict[str, Any] = batch.pop("$defs") | link_batch.pop("$defs") | revocation.pop("$defs")
    found |= files.pop("$defs") | sign.pop("$defs")
    # A request with another field is refused at its place in the answer; the call is not.
    for name in ("GrantRequest", "LinkRequest", "FileRequest", "SignRequest"):
        found[name]["additionalProperties"] = True
    listed = {"type": "array", "items": {"$ref": f"{_REF}ListedLink"}}
    return found | {
        "Batch": batch,
        "Answers": _object({"grants": _either("Grant", "Refusal")}, "Results in the order of the requests."),
        "LinkTerms": TERMS.json_schema(),
        "LinkBatch": link_batch,
        "LinkAnswers": _object({"links": _either("Link", "Refusal")}, "Results in the order of the requests."),
        "Link": _LINK,
        "ListedLink": _LISTED_LINK,
        "LinkList": _object(
            {"links": listed, "next": _nullable("string", "Give it as after for the next page; null at the end.")},
            "A token's links, oldest first.",
        ),
        "Revocation": revocation,
        "FileBatch": files,
        "SignBatch": sign,
        "DoneRequest": guests.DONE.json_schema(),
        "CancelRequest": guests.CANCEL.json_schema(),
        "PinRequest": guests.PIN.json_schema(),
        "Invitation": _INVITATION,
        "Pass": _object({"pass": {"type": "string", "description": "Send it as X-Pass."}}, "A pass for a PIN."),
        "Ticket": _TICKET,
        "Tickets": _object({"files": _either("Ticket", "Refusal")}, "Results in the order of the files."),
        "Receipt": _RECEIPT,
        "Cancelled": _object({"cancelled": {"type": "boolean"}}, "The ticket has ended."),
        "Arrived": _ARRIVED,
        "Inbox": _object(
            {
                "files": {"type": "array", "items": {"$ref": f"{_REF}Arrived"}},
                "next": {"type": "string", "description": "Give it as after to wait for the next files."},
            },
            "What came in and is not acknowledged, in the order in which it was received.",
        ),
        "Acks": ACKS.json_schema(),
        "Grant": _GRANT,
        "Refusal": _REFUSAL,
        "Me": _ME,
        "Status": _object({"status": {"type": "string"}}, "All is well."),
    }


def _either(*schemas: str) -> dict[str, Any]:
    return {"type": "array", "items": {"anyOf": [{"$ref": f"{_REF}{name}"} for name in schemas]}}


def _body(schema: str) -> dict[str, Any]:
    return {"required": True, "content": _json(schema)}


_OF_LINKS = (401, 403, 429, 500, 503)
_WITH_BODY = (400, 408, 413, 415)
_ID = {
    "name": "id",
    "in": "path",
    "required": True,
    "description": "Chosen by the client: 128 random bits. Secret: it opens the link.",
    "schema": {"type": "string", "pattern": "^[A-Za-z0-9_-]{22}$"},
}
_GONE = {"204": {"description": "It no longer opens; the answer is the same if it did not open before."}}

_LINKS: dict[str, Any] = {
    "/v1/links": {
        "get": {
            "summary": "List the token's stable links.",
            "parameters": [
                {
                    "name": "after",
                    "in": "query",
                    "description": "The next of the previous answer; left out or empty for the first page.",
                    "schema": {"type": "string", "pattern": "^([A-Za-z0-9_-]{16})?$"},
                },
                {
                    "name": "refs",
                    "in": "query",
                    "description": "Refs, with commas between them: then only the links that have one of these.",
                    "schema": {"type": "string"},
                },
            ],
            "responses": {"200": _answer("Up to 1,000 of them.", "LinkList")} | _refusals(404, *_OF_LINKS),
        },
        "post": {
            "summary": "Make stable links.",
            "description": f"Up to {MAX_GRANTS} at a time. A refused one has an error at its place.",
            "requestBody": _body("LinkBatch"),
            "responses": {"200": _answer("A result for each, in order.", "LinkAnswers")}
            | _refusals(*_WITH_BODY, *_OF_LINKS),
        },
    },
    "/v1/links/{id}": {
        "put": {
            "summary": "Make a stable link.",
            "parameters": [_ID],
            "requestBody": _body("LinkTerms"),
            "responses": {
                "200": _answer(
                    "The id was known: the link as it was first recorded, whatever this request says.", "Link"
                ),
                "201": _answer("The link.", "Link"),
            }
            | _refusals(*_WITH_BODY, 404, 409, *_OF_LINKS),
        },
        "delete": {
            "summary": "Revoke a stable link.",
            "parameters": [_ID],
            "responses": _GONE | _refusals(404, *_OF_LINKS),
        },
    },
    "/v1/links/revoke": {
        "post": {
            "summary": "Revoke stable links by ref, id, or bucket and key.",
            "requestBody": _body("Revocation"),
            "responses": _GONE | _refusals(*_WITH_BODY, *_OF_LINKS),
        }
    },
}


_PASS = {
    "name": "X-Pass",
    "in": "header",
    "description": "The pass that /pin answered, where pin_needed.",
    "schema": {"type": "string"},
}
_OF_GUESTS = (404, 410, 429, 500, 503)


def _of_guest(words: str, asked: str, answered: str, *refusals: int, more: str = "") -> dict[str, Any]:
    """Return a call below the address of an invitation."""
    return {
        "post": {
            "summary": words,
            "description": more,
            "security": [],
            "parameters": [_INVITED, _PASS],
            "requestBody": _body(asked),
            "responses": {"200": _answer("So it is.", answered)} | _refusals(*_WITH_BODY, 403, *refusals, *_OF_GUESTS),
        }
    }


_INVITED = _ID | {"description": "From the address of an invitation. Secret: it opens the invitation."}
_INVITATIONS: dict[str, Any] = {
    "/i/{id}": {
        "get": {
            "summary": "Return what an invitation allows; a page, to a browser.",
            "security": [],
            "parameters": [_INVITED],
            "responses": {
                "200": _answer("So it is.", "Invitation")
                | {"content": _json("Invitation") | {"text/html": {"schema": {"type": "string"}}}}
            }
            | _refusals(*_OF_GUESTS),
        }
    },
    "/i/{id}/pin": _of_guest("Give the PIN of an invitation.", "PinRequest", "Pass"),
    "/i/{id}/files": _of_guest(
        "Reserve room for files.",
        "FileBatch",
        "Tickets",
        more=f"Up to {MAX_GRANTS} at a time. A refused one has an error at its place.",
    ),
    "/i/{id}/sign": _of_guest(
        "Ask for presigned requests for tickets.",
        "SignBatch",
        "Answers",
        more="The headers are without Content-Length, which is signed too: a browser sends it by itself.",
    ),
    "/i/{id}/done": _of_guest(
        "Report that a file is uploaded.", "DoneRequest", "Receipt", 409, more="The broker asks the store, once."
    ),
    "/i/{id}/cancel": _of_guest("End a ticket.", "CancelRequest", "Cancelled", 409),
}

_INVITED_BY = {
    "name": "invitation",
    "in": "path",
    "required": True,
    "description": "The name of an invitation within the token's bucket and prefix.",
    "schema": {"type": "string", "pattern": "^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"},
}


def _number(name: str, words: str) -> dict[str, Any]:
    schema = {"type": "string", "pattern": "^[0-9]{1,18}$"}
    return {"name": name, "in": "query", "description": words, "schema": schema}


_INBOX: dict[str, Any] = {
    "/v1/inbox/{invitation}": {
        "get": {
            "summary": "List what came in by an invitation; wait for it.",
            "description": "The token needs the operations receive and get.",
            "parameters": [
                _INVITED_BY,
                _number("after", "Only files after this: the next of a previous answer."),
                _number("wait", f"Seconds to wait if there is nothing: {LONGEST_WAIT} at most."),
            ],
            "responses": {"200": _answer("Up to 1,000 files.", "Inbox")} | _refusals(400, 404, *_OF_LINKS),
        }
    },
    "/v1/inbox/{invitation}/ack": {
        "post": {
            "summary": "Take files that have been fetched off the list; the objects stay.",
            "parameters": [_INVITED_BY],
            "requestBody": _body("Acks"),
            "responses": {"204": {"description": "They are off the list, and so is any that was not on it."}}
            | _refusals(*_WITH_BODY, 404, *_OF_LINKS),
        }
    },
}


def _get(words: str, schema: str, *refusals: int, secured: bool = False) -> dict[str, Any]:
    call: dict[str, Any] = {
        "summary": words,
        "responses": {"200": _answer("So it is.", schema)} | _refusals(*refusals),
    }
    return {"get": call if secured else call | {"security": []}}


DOCUMENT: dict[str, Any] = {
    "openapi": "3.1.0",
    "info": {
        "title": "presignd broker",
        "version": presignd.__version__,
        "description": "Presigned S3 requests for holders of a token, within its limits.",
        "license": {"name": "MIT", "identifier": "MIT"},
    },
    "security": [{"token": []}, {"certificate": []}],
    "paths": {
        "/v1/grants": {
            "post": {
                "summary": "Ask for presigned requests.",
                "description": f"Up to {MAX_GRANTS} at a time. A refused request has an error at its place; so has one "
                f"with a field that is not named here. Operations: {', '.join(Operation)}",
                "requestBody": {"required": True, "content": {"application/json": _BATCH}},
                "responses": {"200": _answer("A result for each request, in order.", "Answers")}
                | _refusals(400, 401, 408, 413, 415, 429, 500, 503),
            }
        },
        **_LINKS,
        **_INVITATIONS,
        **_INBOX,
        "/v1/me": _get("Return the token's name, its rights and its limits.", "Me", 401, 500, 503, secured=True),
        "/healthz": _get("Return 200 while the broker runs.", "Status"),
        "/readyz": _get("Return 200 while the broker can sign.", "Status", 503),
        "/openapi.json": {
            "get": {
                "summary": "This document.",
                "security": [],
                "responses": {"200": {"description": "So it is.", "content": {"application/json": {}}}},
            }
        },
    },
    "components": {
        "securitySchemes": {
            "token": {"type": "http", "scheme": "bearer"},
            "certificate": {"type": "mutualTLS"},
        },
        "schemas": _schemas(),
    },
}
"""What ``GET /openapi.json`` answers."""

"""``/i/``: guests send files straight to the store, within what an invitation allows."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path

import pytest

from tests.brokers import command
from tests.guests import Guest, carry_out, invite, md5, send
from tests.postgres import Postgres
from tests.stable import BROWSER, Sharing, sharing
from tests.stores import Store

PART = 16 << 20
BODY = b"scanned in March\n" * 10
BIG = bytes(range(256)) * ((2 * PART + 512) // 256)
_names = (f"invitation-{number}" for number in count())


@pytest.fixture(scope="module")
def bucket(seaweedfs: Store) -> str:
    return seaweedfs.new_bucket()


@pytest.fixture(scope="module")
def broker(seaweedfs: Store, bucket: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sharing]:
    with sharing(tmp_path_factory.mktemp("broker"), seaweedfs, bucket) as broker:
        yield broker


def guest_of(broker: Sharing, *options: str, name: str = "", prefix: str = "in/") -> Guest:
    return Guest(invite(broker, name or next(_names), *options, prefix=prefix)["url"], broker.secrets)


# --- what it is ---------------------------------------------------------------------------------------
def test_an_address_says_what_it_allows(broker: Sharing) -> None:
    guest = guest_of(broker, "--max-files", "3", "--max-size", "1MiB", "--total", "2MiB", "--note", "M\u00e4rz & <b>")
    answer = guest.look()
    told = json.loads(answer.body)
    assert answer.status == 200
    assert answer.headers["cache-control"] == "no-store"
    assert told.pop("expires_at").endswith("Z")
    assert told == {
        "note": "M\u00e4rz & <b>",
        "max_size": 1 << 20,
        "files_left": 3,
        "bytes_left": 2 << 20,
        "pin_needed": False,
        "checksums": {"put": "crc64nvme", "parts": "crc64nvme"},
    }
    page = send(guest.url, "GET", BROWSER)
    assert page.status == 200
    assert "M\u00e4rz &amp; &lt;b&gt;" in page.text
    assert "JavaScript" in page.text
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert page.headers["referrer-policy"] == "no-referrer"


@pytest.mark.parametrize("address", ["i/AAAAAAAAAAAAAAAAAAAAAA", "i/short", "i/"])
def test_there_is_no_other_invitation(broker: Sharing, address: str) -> None:
    answer = Guest(f"{broker.links_url}/{address}").look()
    assert (answer.status, json.loads(answer.body)["error"]["code"]) == (404, "unknown_invitation")
    page = send(f"{broker.links_url}/{address}", "GET", BROWSER)
    assert page.status == 404
    assert "There is no such invitation" in page.text


def test_the_name_of_the_api_serves_no_invitation(broker: Sharing) -> None:
    guest = guest_of(broker)
    assert Guest(guest.url.replace(broker.links_url, broker.url)).look().status == 404
    assert guest.look().status == 200


@pytest.mark.parametrize("accept", ["application/json", "text/html"])
def test_head_answers_as_get_without_a_body(broker: Sharing, accept: str) -> None:
    """Previews and monitors ask so."""
    url = guest_of(broker).url
    got, headed = (send(url, method, {"Accept": accept}) for method in ("GET", "HEAD"))
    assert (headed.status, headed.body) == (200, b"")
    assert headed.headers["content-type"] == got.headers["content-type"]
    assert send(f"{broker.links_url}/i/AAAAAAAAAAAAAAAAAAAAAA", "HEAD", {"Accept": accept}).status == 404


# --- sending ------------------------------------------------------------------------------------------
def test_a_file_comes_in_by_one_put(broker: Sharing, seaweedfs: Store) -> None:
    name = next(_names)
    guest = guest_of(broker, name=name)
    (ticket,) = guest.tickets(("Scans/M\u00e4rz/a b.txt", len(BODY)))
    assert ticket["part_size"] == 0
    assert ticket["key"].startswith("in/")
    assert ticket["key"].endswith("/Scans/M\u00e4rz/a b.txt")
    assert guest.done(ticket)[0] == 409, "nothing is there yet"
    grant = guest.sign(ticket, checksum=md5(BODY))
    assert grant["method"] == "PUT"
    assert "Content-Length" not in grant["headers"]
    assert grant["headers"]["If-None-Match"] == "*", "SeaweedFS honours it"
    assert carry_out(grant, BODY + b"x").status == 403, "the length is signed"
    assert carry_out(grant, b"x" * len(BODY)).status == 400, "and so is the checksum"
    assert carry_out(grant, BODY).status == 200
    assert carry_out(grant, BODY).status == 412, "what is there is not replaced"
    receipt = {"received": True, "size": len(BODY), "checksum": md5(BODY)}
    assert guest.done(ticket) == (200, receipt)
    assert guest.done(ticket) == (200, receipt), "as often as it is asked"
    assert guest.sign(ticket, checksum=md5(BODY))["error"]["code"] == "ticket_refused"
    assert guest.post("cancel", {"ticket": ticket["ticket"]})[0] == 409
    assert seaweedfs.read(broker.bucket, ticket["key"]) == BODY
    assert seaweedfs.stat(broker.bucket, ticket["key"])["ContentType"] == "text/plain"
    event = broker.told("upload.received", invitation=name)
    assert (event["key"], event["size"], event["checksum"]) == (ticket["key"], len(BODY), md5(BODY))


def test_a_large_file_comes_in_by_parts_and_each_has_one_size(broker: Sharing, seaweedfs: Store) -> None:
    guest = guest_of(broker)
    (ticket,) = guest.tickets(("big.bin", len(BIG)))
    assert ticket["part_size"] == PART
    parts = [BIG[start : start + PART] for start in range(0, len(BIG), PART)]
    assert [len(part) for part in parts] == [PART, PART, 512]
    upload = guest.begin(ticket)
    assert guest.sign(ticket, checksum=md5(BIG))["error"]["code"] == "operation_refused"
    wrong = {"upload_id": upload, "part_number": 4, "checksum": md5(b"")}
    assert guest.sign(ticket, "multipart.part", **wrong)["error"]["code"] == "part_refused"
    etags = [
        guest.send_part(ticket, upload, number, part).headers["etag"].strip('"') for number, part in enumerate(parts, 1)
    ]
    assert guest.sign(ticket, "multipart.create")["error"]["code"] == "upload_refused", "it has begun"
    listed = carry_out(guest.sign(ticket, "multipart.list", upload_id=upload))
    assert listed.text.count("<PartNumber>") == 3
    assert guest.complete(ticket, upload, etags).status == 200
    status, receipt = guest.done(ticket, [md5(part) for part in parts])
    assert (status, receipt["size"]) == (200, len(BIG))
    assert receipt["checksum"].startswith("md5:")
    assert seaweedfs.read(broker.bucket, ticket["key"]) == BIG


def test_parts_that_are_not_those_sent_are_found_out(broker: Sharing) -> None:
    guest = guest_of(broker)
    (ticket,) = guest.tickets(("big.bin", PART + 1))
    upload = guest.begin(ticket)
    etags = [
        guest.send_part(ticket, upload, n, part).headers["etag"].strip('"') for n, part in ((1, BIG[:PART]), (2, b"x"))
    ]
    guest.complete(ticket, upload, etags)
    status, answer = guest.done(ticket, [md5(BIG[:PART]), md5(b"y")])
    assert (status, answer["error"]["code"]) == (409, "bad_digest")


def test_an_upload_of_another_ticket_can_not_be_used(broker: Sharing) -> None:
    guest, other = guest_of(broker), guest_of(broker, prefix="other/")
    (one,), (two,) = guest.tickets(("a", 2 * PART)), other.tickets(("a", 2 * PART))
    upload = guest.begin(one)
    assert "url" in guest.sign(one, "multipart.list", upload_id=upload)
    for operation in ("multipart.list", "multipart.complete", "multipart.abort"):
        assert other.sign(two, operation, upload_id=upload)["error"]["code"] == "upload_refused"
    assert other.sign(one, "multipart.list", upload_id=upload)["error"]["code"] == "ticket_refused"


def test_odd_files_are_refused_each_in_its_place(broker: Sharing) -> None:
    guest = guest_of(broker, "--max-size", "100B", "--total", "150B", "--max-files", "3")
    answers = guest.tickets(("../x", 1), ("a", 101), ("b", 100), ("c", 60), ("d", 50), ("\u00e9/" * 600, 1))
    codes = [answer.get("error", {}).get("code") for answer in answers]
    assert codes == ["key_refused", "too_large", None, "no_bytes_left", None, "key_refused"]
    assert json.loads(guest.look().body)["files_left"] == 1


def test_a_file_too_large_for_what_is_left_is_told_so_also_where_a_later_one_took_the_last_place(
    broker: Sharing,
) -> None:
    guest = guest_of(broker, "--total", "10B", "--max-files", "2")
    answers = guest.tickets(("a", 6), ("b", 5), ("c", 4), ("d", 1))
    codes = [answer.get("error", {}).get("code") for answer in answers]
    assert codes == [None, "no_bytes_left", None, "no_files_left"]


@pytest.mark.parametrize(
    ("call", "body", "status"),
    [
        ("files", {"files": [{"path": "a"}]}, 400),
        ("files", {"files": [{"path": "a", "size": "1"}]}, 400),
        ("files", {"file": []}, 400),
        ("files", {"files": [{"path": "a", "size": 1}] * 1001}, 413),
        ("sign", {"requests": "all"}, 400),
        ("done", {}, 400),
        ("cancel", {"ticket": 5}, 400),
        ("done", {"ticket": "forged"}, 409),
        ("cancel", {"ticket": "forged"}, 409),
        ("pin", {"pin": 5}, 400),
    ],
)
def test_a_call_that_is_none_is_refused(broker: Sharing, call: str, body: object, status: int) -> None:
    assert guest_of(broker).post(call, body)[0] == status


def test_an_unknown_field_is_refused_in_its_place(broker: Sharing) -> None:
    answers = guest_of(broker).ask("files", {"files": [{"path": "a", "size": 1, "acl": "x"}, {"path": "b", "size": 1}]})
    assert answers["files"][0]["error"]["code"] == "unknown_field"
    assert "ticket" in answers["files"][1]


# --- ends ---------------------------------------------------------------------------------------------
def test_a_cancelled_upload_is_aborted_and_its_room_is_free(broker: Sharing, seaweedfs: Store) -> None:
    guest = guest_of(broker, "--max-files", "1", prefix="cancelled/")
    (ticket,) = guest.tickets(("big.bin", 2 * PART))
    upload = guest.begin(ticket)
    part = guest.sign(ticket, "multipart.part", upload_id=upload, part_number=1, checksum=md5(BIG[:PART]))
    assert carry_out(part, BIG[:PART]).status == 200
    assert guest.tickets(("other", 1))[0]["error"]["code"] == "no_files_left"
    assert guest.ask("cancel", {"ticket": ticket["ticket"]}) == {"cancelled": True}
    assert guest.ask("cancel", {"ticket": ticket["ticket"]}) == {"cancelled": True}
    assert uploads_of(seaweedfs, broker.bucket, "cancelled/") == []
    assert carry_out(part, BIG[:PART]).status == 404
    assert guest.sign(ticket, "multipart.create")["error"]["code"] == "ticket_refused"
    assert "ticket" in guest.tickets(("other", 1))[0]


def test_a_cancelled_put_holds_its_room_until_its_grant_has_ended(broker: Sharing) -> None:
    guest = guest_of(broker, "--max-files", "1")
    (ticket,) = guest.tickets(("a", len(BODY)))
    grant = guest.sign(ticket, checksum=md5(BODY))
    guest.ask("cancel", {"ticket": ticket["ticket"]})
    assert carry_out(grant, BODY).status == 200, "it can still be sent"
    assert guest.tickets(("b", 1))[0]["error"]["code"] == "no_files_left"


def test_an_upload_that_was_left_is_aborted_when_its_invitation_ends(broker: Sharing, seaweedfs: Store) -> None:
    guest = guest_of(broker, "--valid", "4s", prefix="left/")
    (ticket,) = guest.tickets(("big.bin", 2 * PART))
    upload = guest.begin(ticket)
    guest.sign(ticket, "multipart.list", upload_id=upload)
    assert uploads_of(seaweedfs, broker.bucket, "left/") == [upload]
    broker.until(lambda: not uploads_of(seaweedfs, broker.bucket, "left/"), "the upload is aborted")
    assert guest.look().status == 410


def test_a_revoked_invitation_signs_nothing_and_its_uploads_are_aborted(broker: Sharing, seaweedfs: Store) -> None:
    name = next(_names)
    guest = guest_of(broker, name=name, prefix="revoked/")
    came, cut = guest.tickets(("a", len(BODY)), ("big.bin", 2 * PART))
    guest.put(came, BODY)
    assert guest.done(came)[0] == 200
    upload = guest.begin(cut)
    guest.send_part(cut, upload, 1, BIG[:PART])
    assert uploads_of(seaweedfs, broker.bucket, "revoked/") == [upload]
    revoked = command("invite", "revoke", name, "-c", broker.file)
    assert revoked.returncode == 0
    assert guest.look().status == 410
    assert "has ended" in send(guest.url, "GET", BROWSER).text
    for call, body in (("files", {"files": []}), ("sign", {"requests": []}), ("done", {"ticket": came["ticket"]})):
        assert guest.post(call, body)[0] == 410
    broker.until(lambda: not uploads_of(seaweedfs, broker.bucket, "revoked/"), "the upload is aborted")
    broker.until(lambda: [each for each in broker.events("upload.ended") if each["invitation"] == name], "it is told")
    assert seaweedfs.read(broker.bucket, came["key"]) == BODY, "what came in stays"
    shown = json.loads(command("invite", "show", name, "-c", broker.file, "--json").stdout)
    assert (shown["state"], shown["files"], [each["path"] for each in shown["received"]]) == ("revoked", 1, ["a"])


def uploads_of(store: Store, bucket: str, prefix: str) -> list[str]:
    found = store.client.list_multipart_uploads(Bucket=bucket, Prefix=prefix).get("Uploads", [])
    return [each["UploadId"] for each in found]


# --- PINs ---------------------------------------------------------------------------------------------
def test_a_pin_is_needed_for_everything(broker: Sharing) -> None:
    made = invite(broker, next(_names), "--pin")
    guest = Guest(made["url"])
    assert json.loads(guest.look().body)["pin_needed"] is True
    for call, body in (("files", {"files": []}), ("sign", {"requests": []}), ("done", {"ticket": "x"})):
        status, answer = guest.post(call, body)
        assert (status, answer["error"]["code"]) == (403, "pin_needed")
    assert guest.post("pin", {"pin": "0" * 7})[1]["error"]["code"] == "wrong_pin"
    guest.passed = "1.x"
    assert guest.post("files", {"files": []})[0] == 403
    guest.passed = guest.ask("pin", {"pin": made["pin"]})["pass"]
    broker.secrets += [made["pin"], guest.passed]
    assert guest.ask("files", {"files": []}) == {"files": []}
    other = guest_of(broker, "--pin")
    other.passed = guest.passed
    assert other.post("files", {"files": []})[0] == 403, "a pass is for its own invitation"


def test_a_pin_can_not_be_guessed(seaweedfs: Store, bucket: str, tmp_path: Path) -> None:
    with sharing(tmp_path, seaweedfs, bucket) as broker:
        made = invite(broker, "guessed", "--pin")
        guest = Guest(made["url"])
        statuses = [guest.post("pin", {"pin": "x" * 6})[0] for _ in range(12)]
        assert statuses == [403] * 10 + [429] * 2
        assert guest.post("pin", {"pin": made["pin"]})[0] == 429, "not even the right one, for an hour"


# --- limits -------------------------------------------------------------------------------------------
def test_two_hundred_that_race_for_the_last_slot_at_two_brokers_get_one(
    seaweedfs: Store, bucket: str, tmp_path: Path, postgres: Postgres
) -> None:
    state = f'url = "{postgres.new_database()}"'
    with (
        sharing(tmp_path / "one", seaweedfs, bucket, state=state) as one,
        sharing(tmp_path / "two", seaweedfs, bucket, state=state) as two,
    ):
        made = invite(one, "race", "--max-files", "1", "--total", "1MiB")["url"]
        two.secrets += one.secrets
        guests = [Guest(made), Guest(made.replace(one.links_url, two.links_url))]
        with ThreadPoolExecutor(24) as threads:
            answers = list(threads.map(lambda n: guests[n % 2].tickets((f"file-{n}", 10))[0], range(200)))
        assert sum("ticket" in answer for answer in answers) == 1
        assert {answer["error"]["code"] for answer in answers if "error" in answer} == {"no_files_left"}
        assert json.loads(guests[1].look().body)["files_left"] == 0


def test_who_asks_for_many_that_there_are_not_is_slowed_down(seaweedfs: Store, bucket: str, tmp_path: Path) -> None:
    with sharing(tmp_path, seaweedfs, bucket) as broker:
        url = f"{broker.links_url}/i/{'A' * 22}"
        with ThreadPoolExecutor(8) as threads:
            answers = list(threads.map(lambda _: Guest(url).look(), range(80)))
        assert {answer.status for answer in answers} == {404, 429}
        assert int(Guest(url).look().headers["retry-after"]) > 0


# --- commands -----------------------------------------------------------------------------------------
def test_invitations_are_made_listed_and_shown(broker: Sharing) -> None:
    name = next(_names)
    made = command(
        *("invite", "create", name, "-c", broker.file, "--bucket", broker.bucket, "--prefix", "in/", "--pin", "--qr"),
        *("--total", "50GB"),
    )
    assert made.returncode == 0, made.stderr
    address, pin, *code = made.stdout.splitlines()
    assert address.startswith(f"{broker.links_url}/i/")
    assert pin.startswith("PIN ")
    assert len(code) > 10
    broker.secrets.append(address.rpartition("/")[2])
    listed = command("invite", "list", "-c", broker.file)
    assert [line.split("\t")[4] for line in listed.stdout.splitlines() if name in line] == ["0 bytes of 50.0 GB"]
    shown = dict(line.split("\t") for line in command("invite", "show", name, "-c", broker.file).stdout.splitlines())
    assert (shown["pin_needed"], shown["total"], shown["max_files"]) == ("yes", "50.0 GB", "no limit")
    assert address.rpartition("/")[2] not in listed.stdout
    again = command("invite", "create", name, "-c", broker.file, "--bucket", broker.bucket, "--prefix", "in/")
    assert again.returncode == 4
    assert "there is an invitation" in again.stderr
    unknown = command("invite", "revoke", "none", "-c", broker.file)
    assert unknown.returncode == 4


def test_a_running_broker_answers_commands_and_without_one_the_state_is_opened(
    seaweedfs: Store, bucket: str, tmp_path: Path
) -> None:
    with sharing(tmp_path, seaweedfs, bucket) as broker:
        made = invite(broker, "asked", "--note", "\u00e4")
        event = broker.told("invitation.made")
        assert (event["invitation"], event["by_uid"]) == ("asked", os.geteuid())
        broker.stop()
        shown = command("invite", "show", "asked", "-c", broker.file, "--json")
        assert json.loads(shown.stdout)["note"] == "\u00e4"
        assert command("invite", "revoke", "asked", "-c", broker.file).returncode == 0
        broker.start()
        assert Guest(made["url"]).look().status == 410


def test_terms_that_can_not_be_are_all_told_at_once(broker: Sharing) -> None:
    wrong = command("invite", "create", "a b", "-c", broker.file, "--bucket", "B", "--prefix", "in", "--note", "\x01")
    assert wrong.returncode == 2
    for option in ("NAME", "--bucket", "--prefix", "--note"):
        assert option in wrong.stderr


# --- CORS ---------------------------------------------------------------------------------------------
def checked(broker: Sharing) -> list[dict[str, str]]:
    done = command("check", "-c", broker.file, "--json")
    found = json.loads(done.stdout)["checks"]
    return [each for each in found if each["name"].startswith("CORS")]


def test_check_sends_what_a_page_would_send(seaweedfs: Store, tmp_path: Path) -> None:
    bucket = seaweedfs.new_bucket()
    with sharing(tmp_path, seaweedfs, bucket) as broker:
        assert checked(broker) == [], "there is no invitation"
        invite(broker, "march")
        (result,) = checked(broker)
        assert result["outcome"] == "ok", result
        other = {"AllowedOrigins": ["https://other.example"], "AllowedMethods": ["PUT"], "AllowedHeaders": ["*"]}
        seaweedfs.client.put_bucket_cors(Bucket=bucket, CORSConfiguration={"CORSRules": [other]})
        broker.until(lambda: checked(broker)[0]["outcome"] == "fail", "the store's own rule")
        (result,) = checked(broker)
        assert broker.links_url in result["detail"]
        assert "put-bucket-cors" in result["fix"]
        assert seaweedfs.list(bucket) == []


def test_md5_is_sent_where_the_bucket_lets_pages_send_no_other_checksum(seaweedfs: Store, tmp_path: Path) -> None:
    bucket = seaweedfs.new_bucket()
    with sharing(tmp_path, seaweedfs, bucket) as broker:
        rule = {"AllowedOrigins": ["*"], "AllowedMethods": ["PUT", "POST"], "AllowedHeaders": ["content-md5"]}
        seaweedfs.client.put_bucket_cors(Bucket=bucket, CORSConfiguration={"CORSRules": [rule]})

        def are_md5() -> bool:
            """Ask for a new prefix each time: what is known of one is kept."""
            name = next(_names)
            told = json.loads(guest_of(broker, name=name, prefix=f"{name}/").look().body)
            return bool(told["checksums"] == {"put": "md5", "parts": "md5"})

        broker.until(are_md5, "the bucket's own rule")

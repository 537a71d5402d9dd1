"""An upload id belongs to the token and key that first used it, as long as the broker remembers it."""

from __future__ import annotations

from dataclasses import replace

from presignd.broker.policy import UploadOwners
from presignd.presign import GrantRequest, Operation

PART = GrantRequest(Operation.MULTIPART_PART, "bucket", "a/x", 60, upload_id="u-1")


def test_the_first_use_binds_an_id_to_token_bucket_and_key() -> None:
    uploads = UploadOwners()
    assert uploads.claim("a", PART)
    assert uploads.claim("a", replace(PART, operation=Operation.MULTIPART_COMPLETE))
    assert not uploads.claim("b", PART)
    assert not uploads.claim("a", replace(PART, key="a/y"))
    assert not uploads.claim("a", replace(PART, bucket="other"))
    assert uploads.claim("a", PART), "a refusal changes nothing"


def test_ids_that_look_alike_are_not_one() -> None:
    uploads = UploadOwners()
    assert uploads.claim("a", PART)
    assert uploads.claim("b", replace(PART, upload_id="U-1", key="b/x"))


def test_a_token_past_its_share_forgets_the_id_it_did_not_use_for_longest() -> None:
    uploads = UploadOwners(most=2)
    first, second, third = (replace(PART, upload_id=name, key=f"a/{name}") for name in ("u-1", "u-2", "u-3"))
    assert all(uploads.claim("a", each) for each in (first, second, first, third))
    assert not uploads.claim("b", first), "used again, so kept"
    assert uploads.claim("b", replace(second, key="b/x")), "forgotten: the next use binds it"


def test_no_token_makes_the_broker_forget_the_ids_of_another() -> None:
    uploads = UploadOwners(most=2)
    assert uploads.claim("a", PART)
    for number in range(100):
        assert uploads.claim("b", replace(PART, upload_id=f"b-{number}"))
        assert not uploads.claim("b", PART)


def test_another_broker_or_a_restarted_one_learns_anew() -> None:
    """It remembers nothing, so an upload that is resumed goes on: its uploader is the first to ask again."""
    assert UploadOwners().claim("a", PART)
    assert UploadOwners().claim("a", PART)

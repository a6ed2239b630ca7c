"""Tests of the review's server over HTTP: rows, decisions, and who may call it."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from starlette.testclient import TestClient

from caption_assets.report.review.app import MAX_BODY_BYTES, PAGE, review_app
from caption_assets.store.corrections import Correction, Decision, read_corrections, save_correction
from caption_assets.store.previews import Preview, write_preview
from caption_assets.store.root import Root
from tests.report.review.desks import TOKEN, desk_of
from tests.report.windows import SHARD, captioned, failed, publish, publish_four, window
from tests.stages import STAGE2

pytestmark = pytest.mark.fast

ORIGIN = "http://127.0.0.1:3002"
CAR, VAN = window("car.mp4"), window("van.mp4")
STAGE = STAGE2.name


def row_of(clip: Any = CAR, stage: str = STAGE, shard: str = SHARD) -> str:
    return f"{shard}/{stage}/{clip.window_id}"


@pytest.fixture
def root(tmp_path: Path) -> Root:
    root = Root.open(str(tmp_path / "root"))
    stage1 = [captioned(CAR, "A car."), captioned(VAN, "A van.")]
    publish(root, [CAR, VAN], stage1, [captioned(CAR, "A red car.", fingerprint="f"), failed(VAN)])
    write_preview(root, SHARD, CAR.window_id, Preview(b"jpeg", 6))
    return root


def client_of(root: Root, reviewer: str = "ann", *, signed_in: bool = True) -> TestClient:
    app = review_app(desk_of(root, reviewer=reviewer), Root.open(str(Path(root.path).parent)), TOKEN)
    client = TestClient(app, base_url=ORIGIN, headers={"Origin": ORIGIN})
    if signed_in:
        assert client.get(f"/?token={TOKEN}").status_code == 200
    return client


@pytest.fixture
def client(root: Root) -> TestClient:
    return client_of(root)


def decide(client: TestClient, decision: str = "accept", clip: Any = CAR, **details: Any) -> Any:
    stage = details.pop("stage", STAGE)
    body = {"id": uuid4().hex, "row": row_of(clip, stage), "decision": decision, **details}
    return client.post("/api/corrections", json=body)


def files(root: Root) -> dict[str, bytes]:
    """The files below the folder of root and source, without corrections."""
    folder = Path(root.path).parent
    found = (path for path in folder.rglob("*") if path.is_file() and "corrections" not in path.parts)
    return {str(path): path.read_bytes() for path in found}


# --- rows ---


def test_rows_have_texts_of_all_stages_and_the_preview(client: TestClient) -> None:
    answer = client.get("/api/rows", params={"stage": STAGE}).json()
    assert (answer["found"], answer["first"], answer["progress"]["total"]) == (2, 0, 2)
    row = answer["rows"][0]
    assert (row["id"], row["text"], row["words"], row["state"]) == (row_of(), "A red car.", 3, "undecided")
    assert [other["text"] for other in row["others"]] == ["A car."]
    assert client.get(f"/{row['preview']}").content == b"jpeg"
    assert row["preview_frames"] == 6
    assert answer["rows"][1]["missing"] == "engine: the engine crashed"


def test_long_shards_come_in_pages(tmp_path: Path) -> None:
    root = Root.open(str(tmp_path / "root"))
    clips = [window(f"{number:03}.mp4") for number in range(2 * PAGE + 10)]
    publish(root, clips, [captioned(clip, "A car.") for clip in clips])
    client = client_of(root)

    def page(**place: str) -> list[str]:
        return [row["name"] for row in client.get("/api/rows", params=place).json()["rows"]]

    def row(number: int) -> str:
        return row_of(clips[number], "stage1_captions")

    assert page() == [clip.clip_key for clip in clips[:PAGE]]
    assert page(after=row(PAGE - 1))[0] == clips[PAGE].clip_key
    assert page(before=row(PAGE)) == [clip.clip_key for clip in clips[:PAGE]]
    assert clips[PAGE + 3].clip_key in page(at=row(PAGE + 3))
    assert page(after=row(len(clips) - 1)) == []


def test_invalid_query_is_explained(client: TestClient) -> None:
    answer = client.get("/api/rows", params={"order": "best"})
    assert answer.status_code == 400
    assert "order='best'" in answer.json()["error"]
    assert client.get("/api/rows", params={"after": "x"}).status_code == 404
    assert client.get("/api/changes", params={"since": "x"}).status_code == 400


def test_session_lists_the_filters(client: TestClient) -> None:
    session = client.get("/api/session").json()
    assert session["reviewer"] == "ann"
    assert session["shards"] == [[SHARD, f"{SHARD} (4)"]]
    assert [stage for stage, _ in session["stages"]] == ["stage1_captions", STAGE]


# --- decisions ---


def test_decision_is_stored_before_the_answer(client: TestClient, root: Root) -> None:
    answer = decide(client, "reject", reason="wrong colour")
    assert answer.status_code == 200
    [stored] = read_corrections(root, SHARD).history
    assert (stored.decision, stored.reviewer, stored.reason) == (Decision.REJECT, "ann", "wrong colour")
    assert (stored.reviewed_caption, stored.fingerprint, stored.window_id) == ("A red car.", "f", CAR.window_id)
    assert answer.json()["row"]["state"] == "rejected"


def test_rewrite_is_shown_with_its_difference(client: TestClient) -> None:
    row = decide(client, "rewrite", caption="A blue car.").json()["row"]
    assert row["state"] == "rewritten"
    assert row["correction"]["diff"] == {"old": ["A ", "red", " car."], "new": ["A ", "blue", " car."]}


def test_undo_uncovers_the_decision_before(client: TestClient) -> None:
    decide(client, "accept")
    made = decide(client, "reject").json()["row"]["correction"]
    row = decide(client, "undo", undoes=made["id"]).json()["row"]
    assert row["state"] == "accepted"
    assert [one["decision"] for one in row["history"]] == ["undo", "reject", "accept"]


def test_save_that_is_repeated_has_no_effect(client: TestClient, root: Root) -> None:
    body = {"id": "0" * 32, "row": row_of(), "decision": "accept"}
    first, second = (client.post("/api/corrections", json=body) for _ in range(2))
    assert first.json()["row"] == second.json()["row"]
    assert len(read_corrections(root, SHARD).history) == 1


def test_failed_caption_can_be_rewritten_and_rejected_but_not_accepted(client: TestClient) -> None:
    refused = decide(client, "accept", VAN)
    assert refused.status_code == 422
    assert "no caption to accept" in refused.json()["error"]
    assert decide(client, "rewrite", VAN, caption="A van.").json()["row"]["state"] == "rewritten"
    assert decide(client, "reject", VAN).json()["row"]["state"] == "rejected"


@pytest.mark.parametrize(
    ("details", "status"),
    [
        ({"decision": "delete"}, 422),
        ({"decision": "rewrite"}, 422),
        ({"decision": "rewrite", "caption": " "}, 422),
        ({"decision": "accept", "caption": "A text."}, 422),
        ({"decision": "undo"}, 422),
        ({"decision": "undo", "undoes": "f" * 32}, 422),
        ({"id": "../x"}, 422),
        ({"id": "0" * 31 + "/"}, 422),
        ({"more": 1}, 422),
        ({"row": "x"}, 404),
        ({"row": f"../{STAGE}/{CAR.window_id}"}, 404),
        ({"row": f"{SHARD}/../{CAR.window_id}"}, 404),
        ({"row": f"other/{STAGE}/{CAR.window_id}"}, 404),
        ({"caption": "x" * MAX_BODY_BYTES}, 413),
    ],
)
def test_impossible_decision_is_refused_and_nothing_is_written(
    client: TestClient, root: Root, details: dict[str, Any], status: int
) -> None:
    before = files(root)
    body = {"id": uuid4().hex, "row": row_of(), "decision": "accept", **details}
    answer = client.post("/api/corrections", json=body)
    assert answer.status_code == status
    assert answer.json()["error"]
    assert files(root) == before
    assert read_corrections(root, SHARD).history == []


def test_decisions_write_corrections_and_nothing_else(client: TestClient, root: Root) -> None:
    before = files(root)
    decide(client, "rewrite", caption="../../x")
    assert files(root) == before
    assert [path.parent.name for path in Path(root.path, "corrections").rglob("*.parquet")] == [f"shard={SHARD}"]


def test_json_and_choices_are_rewritten_in_their_form(tmp_path: Path) -> None:
    root = Root.open(str(tmp_path / "root"))
    publish_four(root, [CAR], alignment=failed(CAR))
    client = client_of(root)
    assert "not valid JSON" in decide(client, "rewrite", stage="attributes", caption="{").json()["error"]
    assert "yes, no" in decide(client, "rewrite", stage="alignment", caption="maybe").json()["error"]
    assert decide(client, "rewrite", stage="alignment", caption="no").status_code == 200
    assert decide(client, "rewrite", stage="attributes", caption='{"subjects": []}').status_code == 200


def test_store_that_cannot_be_written_is_an_error_of_the_gateway(client: TestClient, root: Root) -> None:
    Path(root.path, "corrections").write_text("in the way")
    answer = decide(client)
    assert answer.status_code == 502
    assert "cannot write" in answer.json()["error"]


# --- two reviewers ---


def test_two_reviewers_see_each_other_and_lose_nothing(root: Root) -> None:
    ann, bob = client_of(root, "ann"), client_of(root, "bob")
    serial = bob.get("/api/rows").json()["serial"]
    first = decide(ann, "accept").json()["row"]["correction"]
    answer = decide(bob, "reject", seen=None).json()
    assert answer["meanwhile"]["reviewer"] == "ann"
    assert answer["row"]["correction"]["reviewer"] == "bob"
    assert decide(ann, "accept", seen=first["id"]).json()["meanwhile"]["reviewer"] == "bob"
    changes = bob.get("/api/changes", params={"since": serial}).json()
    assert [row["state"] for row in changes["rows"]] == ["accepted"]
    assert changes["progress"]["accepted"] == 1
    assert bob.get("/api/changes", params={"since": changes["serial"]}).json()["rows"] == []
    assert len(read_corrections(root, SHARD).history) == 3


def test_decision_holds_after_one_of_a_machine_with_a_fast_clock(client: TestClient, root: Root) -> None:
    early = Correction.of(captioned(CAR, "A red car."), STAGE, Decision.ACCEPT, "bob")
    save_correction(root, SHARD, replace(early, decided_at=datetime.now(UTC) + timedelta(hours=1)))
    assert decide(client, "reject").json()["row"]["state"] == "rejected"
    found = read_corrections(root, SHARD).find(captioned(CAR, "A red car."), STAGE)
    assert found is not None
    assert found.reviewer == "ann"


def test_decision_on_an_earlier_text_is_outdated_and_shows_it(root: Root) -> None:
    save_correction(root, SHARD, Correction.of(captioned(CAR, "A blue car."), STAGE, Decision.ACCEPT, "bob"))
    row = client_of(root).get("/api/rows", params={"correction": "outdated"}).json()["rows"][0]
    assert row["state"] == "outdated"
    assert row["correction"]["before"] == {"old": ["A ", "blue", " car."], "new": ["A ", "red", " car."]}


# --- who may call it ---


def test_page_needs_no_token_and_has_no_data(root: Root) -> None:
    page = client_of(root, signed_in=False).get("/")
    assert page.status_code == 200
    assert "A red car" not in page.text
    assert CAR.clip_key not in page.text
    assert page.headers["x-frame-options"] == "DENY"
    assert "default-src &#39;none&#39;" in page.text


@pytest.mark.parametrize(
    "path",
    ["/api/session", "/api/rows", "/api/changes", f"/api/video/{SHARD}/{CAR.window_id}", "/api/preview/a/b", "/api/"],
)
def test_api_needs_the_token(root: Root, path: str) -> None:
    client = client_of(root, signed_in=False)
    assert client.get(path).status_code == 401
    client.cookies.set("review-3002", "guess")
    assert client.get(path).status_code == 401
    assert client.get("/?token=guess").status_code == 200
    assert client.get(path).status_code == 401


def test_token_moves_from_the_address_to_a_cookie_that_scripts_and_other_sites_do_not_get(root: Root) -> None:
    client = client_of(root, signed_in=False)
    answer = client.get(f"/?stage=a&token={TOKEN}&order=worst", follow_redirects=False)
    assert (answer.status_code, answer.headers["location"]) == (303, "/?stage=a&order=worst")
    cookie = answer.headers["set-cookie"].lower()
    assert cookie.startswith(f"review-3002={TOKEN}")
    assert "httponly" in cookie
    assert "samesite=strict" in cookie


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "http://127.0.0.1:3000"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://127.0.0.1:3002.evil.example"}, 403),
        ({"Origin": ORIGIN, "Sec-Fetch-Site": "same-site"}, 403),
        ({"Origin": ORIGIN, "Sec-Fetch-Site": "cross-site"}, 403),
        ({"Origin": ORIGIN, "Content-Type": "text/plain"}, 415),
        ({"Origin": ORIGIN, "Content-Type": "application/x-www-form-urlencoded"}, 415),
        ({"Origin": "http://evil.example", "Host": "evil.example"}, 400),
    ],
)
def test_write_from_another_page_is_refused(
    client: TestClient, root: Root, headers: dict[str, str], status: int
) -> None:
    body = json.dumps({"id": uuid4().hex, "row": row_of(), "decision": "accept"})
    headers = {"Content-Type": "application/json", **headers}
    assert client.post("/api/corrections", content=body, headers=headers).status_code == status
    assert read_corrections(root, SHARD).history == []


def test_write_without_origin_is_refused(client: TestClient, root: Root) -> None:
    del client.headers["Origin"]
    assert decide(client).status_code == 403
    assert read_corrections(root, SHARD).history == []


def test_read_by_another_site_is_refused(client: TestClient) -> None:
    assert client.get("/api/rows", headers={"Sec-Fetch-Site": "cross-site"}).status_code == 403
    assert client.get("/api/rows", headers={"Host": "evil.example"}).status_code == 400
    assert client.get("/api/rows", headers={"Host": "127.0.0.1:x"}).status_code < 500


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH"])
def test_other_methods_are_refused(client: TestClient, method: str) -> None:
    answer = client.request(method, "/api/corrections", headers={"Content-Type": "application/json"})
    assert answer.status_code == 405

"""What may be registered, what may be approved, and by whom."""

import json
import threading

import pytest
from release_house import NAME, House

from lineage.errors import BadInput, ExitCode, Tampered
from lineage.job import Job
from lineage.record import read_record, write_record
from lineage.stage import StageRun
from serving.release.approval import NotApproved, approve, reject, require_approval
from serving.release.registry import record_gate, register
from serving.release.states import Event, IllegalTransition, State
from serving.release.store import store_bundle, stored_bundle, verify_stored


def test_registration_keeps_lineage_and_a_read_only_copy(house: House) -> None:
    release = house.registered("1.0.0")
    assert release.state is State.REGISTERED
    assert release.requester == "ada"
    lineage = release.entries[0].payload
    assert (lineage["commit"], lineage["data_version"], lineage["dirty"]) == ("0123abc", "d41d8.dir", [])
    copy = verify_stored(house.places.bundles, release.digest)
    assert all(not path.stat().st_mode & 0o222 for path in copy.rglob("*") if path.is_file())


def test_the_same_bytes_again_are_no_second_entry_and_others_are_refused(house: House) -> None:
    release = house.registered("1.0.0")
    stage = house.root / "runs" / NAME / "1.0.0" / "sft"
    assert register(house.ledger, house.places, NAME, "1.0.0", stage, "eve") == release
    other = house.run("1.0.1", content="other")
    with pytest.raises(BadInput, match="raise `version:`"):
        register(house.ledger, house.places, NAME, "1.0.0", other, "ada")
    assert len(house.ledger.entries()) == 1


def test_a_dirty_result_is_refused_unless_a_waiver_is_signed(house: House) -> None:
    stage = house.run("1.0.0", dirty=True)
    with pytest.raises(BadInput, match="differed from its commit"):
        register(house.ledger, house.places, NAME, "1.0.0", stage, "ada", waiver="  ")
    assert not house.places.bundles.exists()
    release = register(house.ledger, house.places, NAME, "1.0.0", stage, "ada", waiver="hot fix, see incident 7")
    assert release.entries[0].payload["waiver"] == "hot fix, see incident 7"
    assert release.entries[0].payload["dirty"] == ["sft"]


def test_a_dirty_ancestor_is_found(house: House) -> None:
    base = house.run("0.9.0", dirty=True)
    folder = house.root / "runs" / NAME / "1.0.0" / "dpo"
    with StageRun(Job(name=NAME, version="1.0.0", stage="dpo", config={}, parents={"base": base}), folder) as run:
        run.finish({})
    house.stamp(folder, dirty=False)
    with pytest.raises(BadInput, match="the code of sft differed"):
        register(house.ledger, house.places, NAME, "1.0.0", folder, "ada")
    record = read_record(base)
    write_record(base, record.model_copy(update={"seconds": 0.0}))
    with pytest.raises(Tampered, match="not the record that `dpo` was built on"):
        register(house.ledger, house.places, NAME, "1.0.0", folder, "ada", waiver="x")


@pytest.mark.parametrize("part", ["bundle/model.safetensors", "bundle/manifest.json", "record.json"])
def test_a_tampered_run_is_not_registered(house: House, part: str) -> None:
    stage = house.run("1.0.0")
    (stage / part).write_text("{}", encoding="utf-8")
    with pytest.raises(Tampered):
        register(house.ledger, house.places, NAME, "1.0.0", stage, "ada")
    assert house.ledger.entries() == []


def test_a_tampered_copy_is_found_when_the_same_bundle_is_stored_again(house: House) -> None:
    release = house.registered("1.0.0")
    weights = stored_bundle(house.places.bundles, release.digest) / "model.safetensors"
    weights.chmod(0o644)
    weights.write_text("evil", encoding="utf-8")
    with pytest.raises(Tampered, match=r"model\.safetensors"):
        store_bundle(house.root / "runs" / NAME / "1.0.0" / "sft" / "bundle", house.places.bundles)


def test_many_processes_store_one_bundle_once(house: House) -> None:
    bundle = house.run("1.0.0") / "bundle"
    digests: list[str] = []
    threads = [
        threading.Thread(target=lambda: digests.append(store_bundle(bundle, house.places.bundles))) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(digests) == 8
    assert [path.name for path in house.places.bundles.iterdir()] == [digests[0].removeprefix("sha256:")]


def test_a_gate_counts_for_the_digest_that_it_judged(house: House) -> None:
    release = house.registered("1.0.0")
    other = house.registered("1.1.0")
    gate = house.gate("1.0.0", other.digest)
    with pytest.raises(BadInput, match="gate this very version"):
        record_gate(house.ledger, NAME, "1.0.0", gate, "ci")
    assert house.ledger.history(NAME).release("1.0.0") == release


def test_a_changed_verdict_or_changed_scores_are_found(house: House) -> None:
    release = house.registered("1.0.0")
    gate = house.gate("1.0.0", release.digest, "fail")
    (gate / "verdict.json").write_text(json.dumps({"verdict": "pass"}), encoding="utf-8")
    with pytest.raises(Tampered, match=r"verdict\.json"):
        record_gate(house.ledger, NAME, "1.0.0", gate, "ci")
    gate = house.gate("1.0.0", release.digest, "pass", attempt="gate-2")
    (gate.parent / "evaluate" / "scores.json").write_text("{}", encoding="utf-8")
    with pytest.raises(Tampered, match=r"scores\.json"):
        record_gate(house.ledger, NAME, "1.0.0", gate, "ci")


def test_the_same_verdict_again_is_no_second_entry(house: House) -> None:
    house.gated("1.0.0")
    record_gate(house.ledger, NAME, "1.0.0", house.root / "runs" / NAME / "1.0.0" / "gate", "ci")
    assert [entry.event for entry in house.ledger.entries()] == [Event.REGISTERED, Event.GATED]


def test_the_same_verdict_against_another_champion_is_an_entry_of_its_own(house: House) -> None:
    release = house.gated("1.0.0")
    gate = release.last(Event.GATED)
    assert gate is not None
    payload = {key: value for key, value in gate.payload.items() if key != "champion"}  # as an older version wrote it
    house.ledger.append(Event.GATED, release, "ci", payload, house.ledger.history(NAME).head)
    record_gate(house.ledger, NAME, "1.0.0", house.root / "runs" / NAME / "1.0.0" / "gate", "ci")
    assert [entry.event for entry in house.ledger.entries()] == [Event.REGISTERED, *[Event.GATED] * 3]


def test_an_approval_is_bound_to_digest_and_verdict(house: House) -> None:
    release = house.gated("1.0.0")
    entry = approve(house.ledger, house.places, NAME, "1.0.0", "bob", "  not worse anywhere ")
    gate = release.last(Event.GATED)
    assert gate is not None
    assert entry.digest == release.digest
    assert entry.payload == {"reason": "not worse anywhere", "gate_sha256": gate.payload["verdict_sha256"]}
    assert require_approval(house.ledger.history(NAME), "1.0.0") == entry


@pytest.mark.parametrize(
    ("approver", "reason", "problem"),
    [
        ("ada", "mine is good", "registered this version"),
        (" ADA ", "same", "registered this version"),
        ("bob", " \n", "is blank"),
        ("  ", "fine", "is blank"),
    ],
)
def test_self_approval_and_blank_reasons_are_refused(house: House, approver: str, reason: str, problem: str) -> None:
    house.gated("1.0.0")
    with pytest.raises(BadInput, match=problem) as caught:
        approve(house.ledger, house.places, NAME, "1.0.0", approver, reason)
    assert caught.value.exit_code == ExitCode.BAD_INPUT
    assert house.ledger.history(NAME).release("1.0.0").state is State.GATED


@pytest.mark.parametrize("verdict", ["fail", "inconclusive"])
def test_what_the_gate_did_not_pass_cannot_be_approved(house: House, verdict: str) -> None:
    house.gated("1.0.0", verdict)
    with pytest.raises(BadInput, match=f"said `{verdict}`"):
        approve(house.ledger, house.places, NAME, "1.0.0", "bob", "it is fine, really")


def test_what_no_gate_judged_cannot_be_approved(house: House) -> None:
    house.registered("1.0.0")
    with pytest.raises(BadInput, match="has not judged"):
        approve(house.ledger, house.places, NAME, "1.0.0", "bob", "no time")


def test_a_tampered_bundle_cannot_be_approved(house: House) -> None:
    release = house.gated("1.0.0")
    config = stored_bundle(house.places.bundles, release.digest) / "part" / "config.json"
    config.chmod(0o644)
    config.write_text('{"evil": 1}', encoding="utf-8")
    with pytest.raises(Tampered, match=r"config\.json"):
        approve(house.ledger, house.places, NAME, "1.0.0", "bob", "fine")


def test_an_approval_lapses_when_the_gate_speaks_again(house: House) -> None:
    release = house.approved("1.0.0")
    gate = house.gate("1.0.0", release.digest, "pass", attempt="gate-2")
    record_gate(house.ledger, NAME, "1.0.0", gate, "ci")
    with pytest.raises(NotApproved, match="approve or reject it") as caught:
        require_approval(house.ledger.history(NAME), "1.0.0")
    assert caught.value.exit_code == ExitCode.AWAITING_APPROVAL


def test_a_self_approval_slipped_into_the_ledger_does_not_hold(house: House) -> None:
    release = house.gated("1.0.0")
    gate = release.last(Event.GATED)
    assert gate is not None
    payload = {"reason": "trust me", "gate_sha256": gate.payload["verdict_sha256"]}
    house.ledger.append(Event.APPROVED, release, "ada", payload, house.ledger.history(NAME).head)
    with pytest.raises(NotApproved, match="does not hold"):
        require_approval(house.ledger.history(NAME), "1.0.0")


def test_an_approval_of_another_verdict_does_not_hold(house: House) -> None:
    release = house.gated("1.0.0")
    payload = {"reason": "fine", "gate_sha256": "0" * 64}
    house.ledger.append(Event.APPROVED, release, "bob", payload, house.ledger.history(NAME).head)
    with pytest.raises(NotApproved, match="another digest or verdict"):
        require_approval(house.ledger.history(NAME), "1.0.0")


def test_a_verdict_against_a_former_champion_carries_no_approval(house: House) -> None:
    house.crown("0.9.0")
    house.approved("1.0.0")
    house.gated("1.1.0")
    assert require_approval(house.ledger.history(NAME), "1.0.0")
    house.crown("0.9.1")
    with pytest.raises(NotApproved, match=r"compared it with 0\.9\.0, and the champion is 0\.9\.1 now") as caught:
        require_approval(house.ledger.history(NAME), "1.0.0")
    assert caught.value.exit_code == ExitCode.AWAITING_APPROVAL
    with pytest.raises(BadInput, match=r"compared it with 0\.9\.0.*--only gate"):
        approve(house.ledger, house.places, NAME, "1.1.0", "bob", "looked fine last week")
    release = house.ledger.history(NAME).release("1.1.0")
    record_gate(house.ledger, NAME, "1.1.0", house.gate("1.1.0", release.digest, attempt="gate-0.9.1"), "ci")
    assert approve(house.ledger, house.places, NAME, "1.1.0", "bob", "compared with the champion of now")


def test_a_verdict_without_a_champion_carries_no_approval_beside_one(house: House) -> None:
    house.gated("1.0.0")
    house.gated("1.1.0")
    approve(house.ledger, house.places, NAME, "1.0.0", "bob", "first")
    for event in (Event.CANARY_STARTED, Event.PROMOTED):
        history = house.ledger.history(NAME)
        house.ledger.append(event, history.release("1.0.0"), "driver", {}, history.head)
    with pytest.raises(BadInput, match=r"compared it with no champion, and the champion is 1\.0\.0 now"):
        approve(house.ledger, house.places, NAME, "1.1.0", "bob", "above every floor")


def test_a_rejected_version_never_comes_back(house: House) -> None:
    house.gated("1.0.0")
    reject(house.ledger, NAME, "1.0.0", "bob", "answers are curt")
    with pytest.raises(IllegalTransition, match="build a new version"):
        approve(house.ledger, house.places, NAME, "1.0.0", "bob", "changed my mind")
    with pytest.raises(BadInput, match="reason"):
        reject(house.ledger, NAME, "1.0.0", "bob", "")

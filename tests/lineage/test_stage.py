"""A stage runs once per identity: locked, reused, refused, continued, and never believed when its bytes changed."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lineage.errors import BadInput, GoldpathError, Tampered
from lineage.job import Job, dump_job, load_stage
from lineage.record import RECORD, Record, read_record
from lineage.section import Section
from lineage.stage import STARTED, StageRun, remove_unfinished

HOLDER = """
import sys, time
from pathlib import Path
from lineage.job import Job
from lineage.stage import StageRun
out = Path(sys.argv[1])
with StageRun(Job(name="m", version="1", stage="data", config={"seed": 1}), out) as run:
    (out / "half.txt").write_text("half")
    print("holding", flush=True)
    time.sleep(60)
"""


class SeedConfig(Section):
    seed: int
    depth: int = 3


def data_job(**changes: Any) -> Job:
    return Job(**{"name": "m", "version": "1", "stage": "data", "config": {"seed": 1}, **changes})


def finish_data(out: Path, job: Job | None = None, text: str = "rows") -> Record:
    with StageRun(job or data_job(), out) as run:
        (out / "rows").mkdir(exist_ok=True)
        (out / "rows" / "train.jsonl").write_text(text)
        return run.finish({"rows": 1}, data_version="abc.dir")


def sft_job(data: Path, **changes: Any) -> Job:
    return data_job(stage="sft", parents={"data": data}, **changes)


def start_holder(out: Path) -> "subprocess.Popen[str]":
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(out)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "holding\n"
    return holder


def end_holder(holder: "subprocess.Popen[str]") -> None:
    os.kill(holder.pid, signal.SIGKILL)
    holder.communicate()


def test_a_finished_stage_is_reused_and_nothing_is_written(tmp_path: Path) -> None:
    record = finish_data(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.name != ".lock"}
    with StageRun(data_job(), tmp_path) as run:
        assert run.finished == record
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert not (tmp_path / STARTED).exists()


def test_the_record_tells_what_happened(tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text(dump_job(data_job()))
    with StageRun(data_job(), tmp_path):
        (tmp_path / ".checkpoints").mkdir()
        (tmp_path / ".checkpoints" / "step").write_text("hidden")
    record = finish_data(tmp_path)
    assert read_record(tmp_path) == record
    assert set(record.outputs) == {"rows/train.jsonl"}
    assert record.metrics == {"rows": 1}
    assert record.stamp.data_version == "abc.dir"
    assert record.stamp.commit
    assert record.argv[0] == sys.executable
    assert record.peak_memory_bytes > 2**20


def test_a_version_with_another_configuration_is_refused_and_kept(tmp_path: Path) -> None:
    record = finish_data(tmp_path)
    with pytest.raises(BadInput, match="choose a new `version:`"), StageRun(data_job(config={"seed": 2}), tmp_path):
        pass
    assert read_record(tmp_path) == record


def test_sources_outside_the_house_are_part_of_the_identity(tmp_path: Path) -> None:
    with StageRun(data_job(), tmp_path, {"source/a": "1"}) as run:
        run.finish({})
    with pytest.raises(BadInput, match="other inputs"), StageRun(data_job(), tmp_path, {"source/a": "2"}):
        pass


def test_resources_are_not_part_of_the_identity(tmp_path: Path) -> None:
    finish_data(tmp_path)
    with StageRun(data_job(resources={"processes": 8}), tmp_path) as run:
        assert run.finished


def test_two_processes_cannot_run_the_same_stage(tmp_path: Path) -> None:
    holder = start_holder(tmp_path)
    try:
        with pytest.raises(GoldpathError, match="another process is running this stage"), StageRun(data_job(), tmp_path):
            pass
    finally:
        end_holder(holder)


def test_a_killed_stage_did_not_happen_and_the_same_one_continues(tmp_path: Path) -> None:
    end_holder(start_holder(tmp_path))
    with pytest.raises(BadInput, match="did not finish"):
        read_record(tmp_path)
    with StageRun(data_job(), tmp_path) as run:
        assert run.finished is None
        assert (tmp_path / "half.txt").exists()


def test_unfinished_work_of_another_configuration_is_discarded(tmp_path: Path) -> None:
    end_holder(start_holder(tmp_path))
    (tmp_path / ".checkpoints").mkdir()
    with StageRun(data_job(config={"seed": 2}), tmp_path):
        assert {path.name for path in tmp_path.iterdir()} == {".lock", STARTED}


def test_files_that_no_stage_wrote_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(BadInput, match=r"holds thesis\.txt"), StageRun(data_job(), tmp_path):
        pass
    with pytest.raises(BadInput, match=r"holds thesis\.txt"):
        remove_unfinished(tmp_path)
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


@pytest.mark.parametrize("name", [".job.yaml.k3x9", ".started.json.k3x9"])
def test_what_a_kill_left_of_the_first_file_is_no_obstacle(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("{")
    assert set(finish_data(tmp_path).outputs) == {"rows/train.jsonl"}


def test_unfinished_work_is_removed_unless_somebody_is_at_it(tmp_path: Path) -> None:
    out = tmp_path / "out"
    holder = start_holder(out)
    with pytest.raises(GoldpathError, match="another process is running this stage"):
        remove_unfinished(out)
    assert (out / STARTED).exists()
    end_holder(holder)
    remove_unfinished(out)
    assert not out.exists()


@pytest.mark.parametrize("text", ["", "{", "[]", "{}"])
def test_an_unreadable_start_mark_is_no_obstacle(tmp_path: Path, text: str) -> None:
    (tmp_path / STARTED).write_text(text)
    assert finish_data(tmp_path).metrics == {"rows": 1}


def test_a_changed_output_is_found_when_it_is_reused(tmp_path: Path) -> None:
    finish_data(tmp_path)
    (tmp_path / "rows" / "train.jsonl").write_text("Rows")
    with pytest.raises(Tampered, match=r"rows/train\.jsonl: was changed"), StageRun(data_job(), tmp_path):
        pass


def test_a_changed_parent_is_found_before_it_is_read(tmp_path: Path) -> None:
    data = tmp_path / "data"
    finish_data(data)
    (data / "rows" / "train.jsonl").write_text("Rows")
    with pytest.raises(Tampered, match=r"rows/train\.jsonl: was changed"):
        StageRun(sft_job(data), tmp_path / "sft")
    (data / "rows" / "train.jsonl").unlink()
    with pytest.raises(Tampered, match="is missing although its record lists it"):
        StageRun(sft_job(data), tmp_path / "sft")
    assert not (tmp_path / "sft").exists()


def test_a_parent_that_did_not_finish_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="run the stage before it first"):
        StageRun(sft_job(tmp_path / "data"), tmp_path / "sft")


def test_only_what_is_read_is_part_of_the_identity(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    for folder, report in ((first, "a"), (second, "b")):
        with StageRun(data_job(), folder) as run:
            (folder / "rows.jsonl").write_text("rows")
            (folder / "report.html").write_text(report)
            run.finish({})
    reading_rows = [StageRun(sft_job(data, reads={"data": ["rows*"]}), tmp_path / "sft") for data in (first, second)]
    reading_all = [StageRun(sft_job(data), tmp_path / "sft") for data in (first, second)]
    assert reading_rows[0].fingerprint == reading_rows[1].fingerprint
    assert reading_all[0].fingerprint != reading_all[1].fingerprint


def test_lineage_goes_through_the_parents(tmp_path: Path) -> None:
    parent = finish_data(tmp_path / "data")
    with StageRun(sft_job(tmp_path / "data"), tmp_path / "sft") as run:
        record = run.finish({})
    assert record.parents["data"].fingerprint == parent.fingerprint
    assert record.stamp.data_version == "abc.dir"
    assert record.inputs == {"data/rows/train.jsonl": parent.outputs["rows/train.jsonl"].sha256}


@pytest.mark.parametrize("text", ["{", "[]", '{"stage": "data"}'])
def test_a_record_that_is_none_is_tampered(tmp_path: Path, text: str) -> None:
    finish_data(tmp_path)
    (tmp_path / RECORD).write_text(text)
    with pytest.raises(Tampered, match=RECORD):
        read_record(tmp_path)


def test_an_unknown_key_in_a_record_is_tampered(tmp_path: Path) -> None:
    finish_data(tmp_path)
    value = json.loads((tmp_path / RECORD).read_text())
    (tmp_path / RECORD).write_text(json.dumps({**value, "approved": True}))
    with pytest.raises(Tampered, match="approved"):
        read_record(tmp_path)


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(BadInput, match="cannot be written"), StageRun(data_job(), tmp_path / "file" / "data"):
        pass


def test_a_job_file_is_read_back_with_its_defaults(tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(dump_job(data_job()))
    job, config = load_stage(path, SeedConfig)
    assert config == SeedConfig(seed=1, depth=3)
    assert job.config == {"seed": 1, "depth": 3}
    path.write_text(dump_job(data_job(config={"sead": 1})))
    with pytest.raises(BadInput) as caught:
        load_stage(path, SeedConfig)
    assert (caught.value.where, caught.value.field) == (str(path), "config.sead")

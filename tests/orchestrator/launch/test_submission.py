"""Submitting: one run whatever happens to the answer; every refusal says what to do, and none of them hangs."""

import json
import zipfile
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import pytest
import yaml

from orchestrator.errors import RankfireError, SpecError, StartError
from orchestrator.launch import http
from orchestrator.launch.jobs import GRACE, Jobs
from orchestrator.launch.submission import id_of, jobs_of, newest_job, packed, submit
from orchestrator.spec import JobSpec
from tests.orchestrator.launch.dashboard import Cluster, serving

TOKEN = {"RAY_AUTH_TOKEN": "right"}


@pytest.fixture
def cluster() -> Cluster:
    return Cluster()


@pytest.fixture
def url(cluster: Cluster) -> Iterator[str]:
    with serving(cluster) as url:
        yield url


def spec(**changes: object) -> JobSpec:
    given = {"run": "digits", "program": "program:build", "train": {"max_epochs": 1}, "workers": 1, **changes}
    return JobSpec.model_validate(given)


def entered(url: str, **given: object) -> Jobs:
    jobs = Jobs(url, TOKEN, **given)
    jobs.enter()
    return jobs


def send(jobs: Jobs, job: JobSpec, here: Path):
    package, digest = packed(job, here / "job.yaml", here, insecure=False)
    return submit(jobs, job, package, digest)


def test_a_job_is_uploaded_and_submitted_under_its_runs_id(url: str, cluster: Cluster, tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text("def build(worker): ...\n")
    done = send(entered(url), spec(), tmp_path)
    job = cluster.jobs["rankfire-digits"]
    assert (done.new, done.job.id, done.uploaded > 0) == (True, "rankfire-digits", True)
    assert job["entrypoint"] == "exec python -m orchestrator packed"
    assert job["runtime_env"]["env_vars"] == {"RAY_JOB_STOP_WAIT_TIME_S": str(GRACE)}
    [content] = cluster.packages.values()
    with zipfile.ZipFile(BytesIO(content)) as archive:
        assert sorted(archive.namelist()) == [".rankfire/job.yaml", ".rankfire/roots.json", "program.py"]
        there = yaml.safe_load(archive.read(".rankfire/job.yaml"))
    assert (there["storage"], there["cluster"]["address"]) == (str(Path.cwd() / "runs"), None)


def test_submitted_twice_is_one_run(url: str, cluster: Cluster, tmp_path: Path) -> None:
    first, second = send(entered(url), spec(), tmp_path), send(entered(url), spec(), tmp_path)
    assert ([first.new, second.new], second.job.id, len(cluster.jobs)) == ([True, False], first.job.id, 1)


def test_an_answer_that_was_lost_makes_no_second_run(url: str, cluster: Cluster, tmp_path: Path) -> None:
    cluster.loses_answers = 1
    with pytest.raises(StartError, match="RemoteDisconnected"):
        send(entered(url), spec(), tmp_path)
    assert cluster.loses_answers == 0  # it was lost
    assert (send(entered(url), spec(), tmp_path).new, list(cluster.jobs)) == (False, ["rankfire-digits"])


def test_of_two_who_submit_at_once_the_slower_finds_the_first(url: str, cluster: Cluster, tmp_path: Path) -> None:
    jobs = entered(url)
    package, digest = packed(spec(), tmp_path / "job.yaml", tmp_path, insecure=False)
    real, raced = jobs.submit, []

    def race(*arguments: object) -> bool:
        raced.append(real(*arguments))
        return real(*arguments)

    jobs.submit = race  # the other one's submission comes in between
    done = submit(jobs, spec(), package, digest)
    assert (raced, done.new, len(cluster.jobs)) == ([True], False, 1)


def test_a_run_id_that_another_job_has_is_refused(url: str, cluster: Cluster, tmp_path: Path) -> None:
    send(entered(url), spec(), tmp_path)
    with pytest.raises(SpecError, match=r"run 'digits': expected a run id that is free .* choose another run id"):
        send(entered(url), spec(seed=1), tmp_path)


@pytest.mark.parametrize("status", ["FAILED", "STOPPED"])
def test_a_run_that_ended_early_is_submitted_again_under_the_next_number(
    status: str, url: str, cluster: Cluster, tmp_path: Path
) -> None:
    send(entered(url), spec(), tmp_path)
    cluster.jobs["rankfire-digits"]["status"] = status
    done = send(entered(url), spec(), tmp_path)
    assert (done.new, done.uploaded, done.job.id) == (True, 0, "rankfire-digits~2")
    assert newest_job(entered(url), "digits").id == "rankfire-digits~2"


def test_a_job_that_has_finished_is_told_and_one_that_asks_for_more_is_new(
    url: str, cluster: Cluster, tmp_path: Path
) -> None:
    send(entered(url), spec(), tmp_path)
    cluster.jobs["rankfire-digits"]["status"] = "SUCCEEDED"
    assert send(entered(url), spec(), tmp_path).new is False
    assert send(entered(url), spec(train={"max_epochs": 2}), tmp_path).new is True


def test_no_two_runs_share_a_submission_id() -> None:
    assert len({id_of(run, number) for run in ("a", "a-2", "a.2", "a_2") for number in (1, 2, 22)}) == 12


def test_a_run_that_was_never_submitted_is_told(url: str) -> None:
    with pytest.raises(SpecError, match=r"received none of that name; submit it: rankfire submit job\.yaml"):
        newest_job(entered(url), "digits")
    assert jobs_of(entered(url), "digits") == []


def test_a_job_beside_the_current_folder_is_packed_from_its_own(tmp_path: Path) -> None:
    (tmp_path / "project").mkdir()
    (tmp_path / "here").mkdir()
    (tmp_path / "project" / "program.py").write_text("")
    package, _ = packed(spec(), tmp_path / "project" / "job.yaml", tmp_path / "here", insecure=False)
    assert "program.py" in package.files
    package, _ = packed(spec(), tmp_path / "project" / "job.yaml", tmp_path, insecure=False)
    with zipfile.ZipFile(BytesIO(package.content)) as archive:
        assert json.loads(archive.read(".rankfire/roots.json")) == [".", "project"]


@pytest.mark.parametrize(
    ("cluster", "environment", "told"),
    [
        (Cluster(), {"HOME": "/nowhere"}, "received none here; set RAY_AUTH_TOKEN_PATH"),
        (Cluster(), {"RAY_AUTH_TOKEN": "wrong"}, "received another one, from RAY_AUTH_TOKEN; ask who runs the cluster"),
        (Cluster(version="2.40.0"), TOKEN, "expected Ray 2.56 or newer, received version 2.40.0; install"),
        (Cluster(version=""), TOKEN, "received version unknown"),
    ],
)
def test_a_cluster_that_can_not_be_used_is_told_with_the_mend(url: str, environment: dict[str, str], told: str) -> None:
    with pytest.raises(StartError) as caught:
        Jobs(url, environment).enter()
    assert told in str(caught.value)


@pytest.mark.parametrize(("cluster", "enters"), [(Cluster("disabled"), False), (Cluster(), True)])
def test_an_open_cluster_elsewhere_gets_nothing_without_insecure(
    url: str, cluster: Cluster, enters: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator.launch.access.is_loopback", lambda host: False)
    monkeypatch.setattr("orchestrator.launch.jobs.is_loopback", lambda host: False)
    jobs = Jobs(url, TOKEN)
    if enters:
        jobs.enter()
        assert "in clear" in (jobs.warning or "")
        return
    with pytest.raises(StartError, match=r"lets everybody in and run what they like.*--insecure"):
        jobs.enter()
    assert [path for _, path, _ in cluster.seen] == ["/api/authentication_mode"]
    Jobs(url, TOKEN, insecure=True).enter()
    assert {shown for _, _, shown in cluster.seen} == {None}  # who asks for no token gets none


def test_nobody_at_the_address_is_told() -> None:
    with pytest.raises(StartError, match=r"expected the dashboard of a Ray cluster, received ConnectionRefusedError"):
        Jobs("http://127.0.0.1:1", TOKEN).enter()


@pytest.mark.parametrize("address", ["ftp://head", "http://", "http://head:port", "http://head:99999", "///"])
def test_what_is_no_address_is_told(address: str) -> None:
    with pytest.raises(StartError, match=r"write for example http://127\.0\.0\.1:8265"):
        Jobs(address, TOKEN)


def test_a_dashboard_that_trickles_is_not_waited_for(url: str, cluster: Cluster) -> None:
    cluster.trickles.set()
    with pytest.raises(StartError, match="no whole answer in time"):  # else it would trickle for ever
        Jobs(url, TOKEN, patience=0.5).enter()


def test_an_endless_answer_does_not_fill_the_memory(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "MOST", 10)
    with pytest.raises(StartError, match="an answer of more than"):
        Jobs(url, TOKEN).enter()


def test_a_redirect_is_not_followed_with_the_token(url: str, cluster: Cluster) -> None:
    other = Cluster()
    jobs = entered(url)
    with serving(other) as elsewhere:
        cluster.redirect = f"{elsewhere}/api/jobs/rankfire-digits"
        with pytest.raises(RankfireError, match="status 302"):
            jobs.get("rankfire-digits")
    assert other.seen == []

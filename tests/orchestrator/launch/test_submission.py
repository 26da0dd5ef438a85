"""Submitting: one run whatever happens to the answer; every refusal says what to do, and none of them hangs."""

import json
import zipfile
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import pytest
import yaml

from orchestrator.errors import RankfireError, SpecError, StartError, SystemFailure
from orchestrator.launch import http
from orchestrator.launch.jobs import GRACE, Jobs
from orchestrator.launch.submission import id_of, jobs_of, newest_job, packed, submit
from orchestrator.spec import JobSpec
from tests.orchestrator.launch.dashboard import Cluster, serving
from workers.redaction import redact

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


WRONG = [
    *("ftp://head", "http://", "http://head:port", "http://head:99999", "http://head:0", "///", "http://[::1"),
    *("http://a..b", f"http://{'a' * 80}.example", "http://x y", "http://127.0.0.1:1/a b", "http://127.0.0.1:1/\u00e9"),
]


@pytest.mark.parametrize("address", WRONG)
def test_what_is_no_address_is_told(address: str) -> None:
    with pytest.raises(StartError, match=r"write for example http://127\.0\.0\.1:8265"):
        Jobs(address, TOKEN)


TRICKLING = [
    b"",  # the body
    b"HTTP/1.1 200 OK\r\nX-Anything: ",
    b"HTTP/1.1 200",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5;",
    b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n",
]


@pytest.mark.parametrize("begins", TRICKLING)
def test_a_dashboard_that_trickles_is_not_waited_for(url: str, cluster: Cluster, begins: bytes) -> None:
    cluster.begins = begins
    cluster.trickles.set()
    with pytest.raises(StartError, match="no whole answer in time"):  # else it would trickle for ever
        Jobs(url, TOKEN, patience=0.5).enter()


def whole(body: bytes, status: bytes = b"200 OK") -> bytes:
    return b"HTTP/1.1 " + status + b"\r\n\r\n" + body


GARBAGE = [
    ("/api/authentication_mode", b"\x1b[2J\x00garbage\r\n\r\n", StartError, r"BadStatusLine: .*x1b\[2J.*; see that"),
    ("/api/version", whole(b"[" * 200_000), StartError, "received version unknown"),
    ("/api/version", whole('{"ray_version": "\u00b2.\u00b2"}'.encode()), StartError, "received version"),
    ("/api/version", whole(b'{"ray_version": "' + b"9" * 5000 + b'.1"}'), StartError, "received version 9{40};"),
    ("/api/version", whole(b'{"ray_version": "1\\u001b[2J"}'), StartError, r"received version 1\\x1b\[2J;"),
    ("/api/version", whole(b"first\nlast \x1b[2J", b"500 No"), SystemFailure, r"status 500: last \\x1b\[2J;"),
]


@pytest.mark.parametrize(("path", "answer", "kind", "told"), GARBAGE)
def test_a_dashboard_that_answers_garbage_is_told_in_words(
    url: str, cluster: Cluster, path: str, answer: bytes, kind: type[RankfireError], told: str
) -> None:
    cluster.says[path] = answer
    with pytest.raises(kind, match=told) as caught:
        entered(url)
    assert [letter for letter in str(caught.value) if not letter.isprintable()] == []


@pytest.mark.parametrize("metadata", ["[1]", '"x"', "7", "null"])
def test_what_a_dashboard_says_of_a_job_may_be_anything(url: str, cluster: Cluster, metadata: str) -> None:
    text = f'{{"status": "RUN\\u001b[2J", "message": "a\\u001b\\nb", "metadata": {metadata}}}'
    cluster.says["/api/jobs/rankfire-digits"] = whole(text.encode())
    job = entered(url).get("rankfire-digits")
    assert job is not None
    assert (job.status, job.message, job.metadata) == ("RUN\\x1b[2J", "a\\x1b\nb", {})


def test_a_token_that_a_dashboard_repeats_is_masked(url: str, cluster: Cluster, tmp_path: Path) -> None:
    cluster.token = "canary-of-a-token"
    (tmp_path / "token").write_text(cluster.token)
    (tmp_path / "token").chmod(0o600)
    cluster.says["/api/version"] = b"HTTP/1.1 500 No\r\n\r\nREQUEST"
    with pytest.raises(SystemFailure) as caught:
        Jobs(url, {"RAY_AUTH_TOKEN_PATH": str(tmp_path / "token")}).enter()
    assert "Authorization: Bearer" in str(caught.value)
    assert cluster.token not in redact(str(caught.value), {})


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

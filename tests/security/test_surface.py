"""S4, S7, S9: no code comes out of data; what unpickles is listed with its reason; servers of ours are not for all."""

import ast
import socket
from pathlib import Path

import psutil

from orchestrator.rendezvous import Rendezvous

TOP = Path(__file__).parents[2]
UNPICKLES = {
    "orchestrator/asking.py": "what a function returned that the driver's own user had sent to a rank",
    "workers/building.py": "the user's build function, and parts of Ray data sets, from the driver",
    "workers/copies.py": "a rank's own snapshot, in its own memory",
    "workers/data/carried.py": "a data set on its way to the loader processes of its own rank",
    "workers/gates.py": "handlers for ranks, from the driver",
    "workers/handover.py": "a survivor's state for a newcomer, over the process group of the run",
    "workers/left_behind.py": "metrics of a lost rank, kept by the driver",
    "workers/rewinding.py": "a lost rank's own state, kept by the driver",
    "workers/serving.py": "a function of the user's, from the driver",
}
"""Files that unpickle, and from whom: always a process of the same run, never a file, a checkpoint or a job."""
DANGEROUS = {"eval", "exec", "os.system", "os.popen", "yaml.load", "yaml.unsafe_load", "marshal.loads", "shelve.open"}


def calls(path: Path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            yield node, ast.unparse(node.func)


def sources():
    paths = (path for folder in ("workers", "orchestrator") for path in (TOP / folder).rglob("*.py"))
    return [(str(path.relative_to(TOP)), path) for path in paths]


def problems(name: str, path: Path):
    for node, called in calls(path):
        words = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        if called in DANGEROUS or words.get("shell") == "True":
            yield f"{name}:{node.lineno}: {called}"
        if called == "torch.load" and words.get("weights_only") != "True":
            yield f"{name}:{node.lineno}: torch.load without weights_only=True"
        if called in ("pickle.load", "pickle.loads", "cloudpickle.loads", "cloudpickle.load") and name not in UNPICKLES:
            yield f"{name}:{node.lineno}: {called}: say in UNPICKLES from whom, or don't"


def test_no_code_comes_out_of_data():
    assert [problem for name, path in sources() for problem in problems(name, path)] == []


def test_the_scan_sees_what_it_looks_for(tmp_path):
    lines = ["eval(x)", "torch.load(f)", "pickle.loads(b)", "subprocess.run(c, shell=True)", "yaml.load(t)"]
    (tmp_path / "bad.py").write_text("\n".join(lines))
    assert len(list(problems("bad.py", tmp_path / "bad.py"))) == len(lines)


def test_every_file_that_may_unpickle_does():
    assert {name for name, path in sources() if "pickle.loads" in path.read_text()} == set(UNPICKLES)


def listening() -> set[tuple[str, int]]:
    found = psutil.Process().net_connections("inet")
    return {(one.laddr.ip, one.laddr.port) for one in found if one.status == psutil.CONN_LISTEN}


def test_the_store_at_which_ranks_meet_listens_at_one_address_only():
    before = listening()
    with Rendezvous("127.0.0.1") as (host, port):
        assert listening() - before == {("127.0.0.1", port)}
        socket.create_connection((host, port), timeout=5).close()
    assert listening() - before == set()

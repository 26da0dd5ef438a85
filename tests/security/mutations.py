"""For each security promise: a guard, what the code is without it, and the test that must fail then."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["MUTATIONS", "Mutation"]


@dataclass(frozen=True, slots=True)
class Mutation:
    """A guard that is taken away.

    Args:
        promise: whose guard it is, such as S1.
        guard: in words.
        path: of the file.
        before: a text that stands there once.
        after: what is put in its place.
        test: what is given to pytest.
    """

    promise: str
    guard: str
    path: str
    before: str
    after: str
    test: str


LAUNCH = "tests/orchestrator/launch"
MUTATIONS = [
    Mutation("S1", "an open cluster is refused", "orchestrator/launch/access.py",
             "if authenticated or insecure or is_loopback(host):", "if True:",
             f"{LAUNCH}/test_access.py::test_an_open_cluster_that_others_reach_is_refused_and_named"),
    Mutation("S1", "submitting asks whether it is open", "orchestrator/launch/jobs.py",
             "demand_authentication(where,", "(lambda *a, **k: None)(where,",
             f"{LAUNCH}/test_submission.py -k open_cluster_elsewhere"),
    Mutation("S1", "the token is not sent to who does not ask", "orchestrator/launch/jobs.py",
             "        if authenticated:\n", "        if True:\n",
             f"{LAUNCH}/test_submission.py -k open_cluster_elsewhere"),
    Mutation("S1", "a host name that begins with 127.0.0.1 is not this machine", "orchestrator/launch/access.py",
             "        return ipaddress.ip_address(host.strip(\"[]\")).is_loopback",
             "        return host.startswith('127.')",
             f"{LAUNCH}/test_access.py -k hosts_that"),
    Mutation("S2", "the number of values is bounded", "orchestrator/yaml_text.py",
             "    if count > MAX_VALUES:", "    if False:",
             "tests/orchestrator/test_yaml_text.py::test_a_billion_laughs_end_early"),
    Mutation("S2", "the depth is bounded", "orchestrator/yaml_text.py",
             "    if depth > MAX_DEPTH:", "    if False:", "tests/orchestrator/test_specfile.py"),
    Mutation("S2", "the size is bounded", "orchestrator/specfile.py",
             "    if len(data) > MAX_BYTES:", "    if False:", "tests/security/test_hostile_specs.py -k any_size"),
    Mutation("S2", "duplicate keys are refused", "orchestrator/yaml_text.py",
             "            if key in given:\n", "            if False:\n", "tests/orchestrator/test_yaml_text.py"),
    Mutation("S2", "tags are refused", "orchestrator/yaml_text.py",
             "(kind != \"str\" and kind not in RESOLVERS)", "False", "tests/orchestrator/test_yaml_text.py"),
    Mutation("S3", "run ids are one plain name", "orchestrator/spec_values.py",
             "    if not RUN_ID.fullmatch(text) or \"..\" in text:", "    if False:",
             "tests/security/test_paths.py::test_no_run_id_leaves_the_root"),
    Mutation("S3", "a run behind a link is not taken", "orchestrator/ownership.py",
             "        if stat.S_ISLNK(found.st_mode):", "        if False:", "tests/security/test_paths.py -k link"),
    Mutation("S3", "links that lead out are not packed", "orchestrator/launch/package.py",
             "        if not Path(target).is_relative_to(self._real):", "        if False:",
             f"{LAUNCH}/test_package.py -k links"),
    Mutation("S6", "no link leads to what is never packed", "orchestrator/launch/package.py",
             "        elif any(_never(name) for name", "        elif False and any(_never(name) for name",
             f"{LAUNCH}/test_package.py -k never_packed"),
    Mutation("S3", "a log is not written through a link", "workers/logs.py",
             " | os.O_NOFOLLOW", "", "tests/workers/test_logs.py -k link"),
    Mutation("S4", "tensors are read with weights_only", "workers/parts.py",
             "io.BytesIO(stream.take(size)), map_location=\"cpu\", weights_only=True",
             "io.BytesIO(stream.take(size)), map_location=\"cpu\", weights_only=False",
             "tests/workers/test_parts.py -k no_tensor_is_not_read"),
    Mutation("S4", "whatever else is read, too", "workers/shards.py",
             "weights_only=True, map_location", "weights_only=False, map_location",
             "tests/security/test_surface.py::test_no_code_comes_out_of_data"),
    Mutation("S5", "hashes are compared", "orchestrator/checkpoints/verify.py",
             "    return None if found == entry else", "    return None if True else",
             "tests/orchestrator/checkpoints/test_verify.py"),
    Mutation("S5", "sizes are compared", "orchestrator/checkpoints/verify.py",
             "    if found.size != entry.size:", "    if False:",
             "tests/orchestrator/checkpoints/test_verify.py"),
    Mutation("S6", "journals are masked", "orchestrator/journal.py",
             "    return redact(str(value))", "    return str(value)", "tests/security/test_secrets.py -k journal"),
    Mutation("S6", "what a rank raises is masked before it leaves", "workers/parcels.py",
             "text=redact(text), traceback=redact(lines)", "text=text, traceback=lines",
             "tests/security/test_secrets.py -k raises"),
    Mutation("S6", "logs are masked", "workers/logs.py",
             "        text = redact(_STYLE.sub(\"\", text).rpartition(\"\\r\")[2])",
             "        text = _STYLE.sub(\"\", text).rpartition(\"\\r\")[2]", "tests/workers/test_logs.py -k secrets"),
    Mutation("S6", "a secret itself is refused in a job file", "orchestrator/spec_values.py",
             "        if sounds_secret(key) and isinstance(item, str) and item:", "        if False:",
             "tests/security/test_secrets.py -k itself"),
    Mutation("S6", "a secret that was looked up is known", "workers/secrets.py",
             "        learn(secret)\n", "", "tests/security/test_secrets.py -k canary"),
    Mutation("S6", "a token is masked where a server repeats it", "orchestrator/launch/access.py",
             "    learn(value)\n", "", f"{LAUNCH}/test_submission.py -k repeats"),
    Mutation("S6", "the lines of a secret are masked", "workers/redaction.py",
             ", *(line.strip() for line in value.splitlines())}", "}",
             "tests/security/test_secrets.py -k several_lines"),
    Mutation("S6", "a secret is masked as Python and JSON write it", "workers/redaction.py",
             "for form in plain | once | twice if", "for form in plain if",
             "tests/workers/test_redaction.py -k written"),
    Mutation("S6", "a secret too short to be masked is refused", "workers/secrets.py",
             "        if len(secret.strip()) < SHORTEST:", "        if False:",
             "tests/security/test_secrets.py -k too_short"),
    Mutation("S7", "a job names its program, it does not carry it", "orchestrator/spec_values.py",
             "    if not TARGET.fullmatch(text):", "    if False:", "tests/security/test_hostile_specs.py -k no_code"),
    Mutation("S8", "folders are for their owner", "workers/folder.py",
             "            folder.mkdir(exist_ok=True, mode=0o700)", "            folder.mkdir(exist_ok=True)",
             "tests/security/test_paths.py -k owner_alone"),
    Mutation("S8", "another user's run is not taken", "orchestrator/ownership.py",
             "        elif found.st_uid != os.geteuid() and found.st_uid", "        elif False and found.st_uid",
             "tests/security/test_paths.py -k another_users_run"),
    Mutation("S8", "a token made here is for its owner", "orchestrator/launch/local_ray.py",
             "os.O_EXCL | os.O_NOFOLLOW, 0o600)", "os.O_EXCL | os.O_NOFOLLOW, 0o644)",
             f"{LAUNCH}/test_access.py -k user_alone"),
    Mutation("S8", "a token that others may read is told", "orchestrator/launch/access.py",
             "    warn_of_readers(path)\n", "", f"{LAUNCH}/test_access.py -k told_once"),
    Mutation("S9", "the store listens at one address", "orchestrator/rendezvous.py",
             "socket.create_server((self._host, 0),", "socket.create_server((\"\", 0),",
             "tests/security/test_surface.py -k one_address"),
    Mutation("S10", "the lock is by hash", "deploy/sbom.py", "if __name__", "HASH = re.compile('x')\nif __name__",
             "tests/security/test_supply_chain.py -k bill"),
    Mutation("S10", "an audit that asked nobody is skipped", "deploy/audit.py",
             "    if unknown or not asked:", "    if False:", "tests/security/test_supply_chain.py -k asked_nobody"),
    Mutation("S11", "tokens are demanded of manifests", "orchestrator/launch/lint.py",
             "    if spec.get(\"authOptions\", {}).get(\"mode\") != \"token\":", "    if False:",
             "tests/deploy/test_manifests.py -k authOptions"),
    Mutation("S11", "images are by digest", "orchestrator/launch/lint.py",
             "    if not DIGEST.fullmatch(str(container.get(\"image\", \"\"))):", "    if False:",
             "tests/deploy/test_manifests.py -k image"),
    Mutation("S11", "compose opens no port to others", "orchestrator/launch/lint.py",
             "        if not re.match(r\"(127\\.0\\.0\\.1|\\[::1\\]):\", str(port)):", "        if False:",
             "tests/deploy/test_manifests.py -k ports"),
    Mutation("S11", "a job file's name is no command", "orchestrator/launch/slurm.py",
             "shlex.join([job, *given])", "\" \".join([job, *given])", "tests/deploy/test_manifests.py -k no_command"),
    Mutation("S12", "an answer that trickles is cut off", "orchestrator/launch/http.py",
             "        until = time.monotonic() + self._patience\n", "        until = time.monotonic() + 1e6\n",
             f"{LAUNCH}/test_submission.py -k trickles --timeout=15"),
    Mutation("S12", "headers that trickle are cut off", "orchestrator/launch/http.py",
             "io.BufferedReader(_Timed(sock, until))", "sock.makefile(\"rb\")",
             f"{LAUNCH}/test_submission.py -k trickles --timeout=15"),
    Mutation("S12", "no line of an ignore file takes long", "orchestrator/launch/ignoring.py",
             "        at, end = first.length, len(name) - last.length\n",
             "        at, end = first.length, len(name) - last.length\n"
             "        return bool(re.fullmatch('.*'.join(piece.pattern.pattern for piece in self.pieces), name))\n",
             f"{LAUNCH}/test_package.py -k takes_long"),
    Mutation("S12", "JSON of any depth is read or refused", "orchestrator/launch/http.py",
             "(ValueError, RecursionError)", "ValueError", f"{LAUNCH}/test_submission.py -k garbage"),
    Mutation("S12", "what a server says moves no cursor", "orchestrator/launch/http.py",
             "letter if letter.isprintable() else", "letter if True else", f"{LAUNCH}/test_submission.py -k garbage"),
    Mutation("S12", "an answer without end is cut off", "orchestrator/launch/http.py",
             "            if size > MOST:", "            if False:", f"{LAUNCH}/test_submission.py -k endless"),
    Mutation("S12", "a redirect is not followed", "orchestrator/launch/jobs.py",
             "        if answer.status == 200:\n            return answer",
             "        if answer.status in (200, 302):\n            return answer",
             f"{LAUNCH}/test_submission.py -k redirect"),
]  # fmt: skip

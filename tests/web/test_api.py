"""The whole API: the document names every route, and whatever is asked, no answer is an error of the server."""

import re
from contextlib import suppress
from pathlib import Path

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable
from served_atlas import TOKEN, filled, serving

from weightspace.web import jobs, uploads
from weightspace.web.app import application
from weightspace.web.guard import Rules
from weightspace.web.served import Served
from weightspace.web.spawn import Outcome, Process

DOCUMENT = Path(__file__).parents[2] / "docs" / "web_api.md"
OURS = ("/api/", "/reports/view", "/socket/jobs", "/health")
EXAMPLES = 12  # for each operation


def test_the_document_names_every_route_and_no_other(tmp_path):
    app = application(Served(tmp_path), Rules(TOKEN, frozenset(["127.0.0.1:1"]))).app
    said = re.findall(r"^\| (GET|POST|DELETE|socket) \| `([^`]+)` \|", DOCUMENT.read_text(), re.M)
    schema = {(method.upper(), path) for path, item in app.openapi()["paths"].items() for method in item}
    ours = {one for one in schema if one[1].startswith(OURS)} | {("socket", "/socket/jobs")}
    assert len(said) == len({*said}) and {*said} == ours
    assert not [path for _, path in schema if not path.startswith((*OURS, "/play", "/socket"))]


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """An application whose jobs and readers end at once."""
    folder = filled(tmp_path_factory.mktemp("atlas"))
    patch = pytest.MonkeyPatch()

    class Nothing(Process):
        def __init__(self, order, command=()):
            pass

        def run(self, told, seconds):
            return Outcome(error="nothing is done here")

        def stop(self, why):
            pass

    patch.setattr(uploads, "Process", Nothing)
    patch.setattr("weightspace.web.queue.Process", Nothing)
    assert jobs.Queue is not None
    with serving(folder / "reports", folder, data=("digits",)) as client:
        yield client
    patch.undo()


def schema_of(client):
    return client.client.app.app.openapi()


def test_no_question_that_the_schema_allows_or_forbids_is_an_error_of_the_server(served):
    """Questions are drawn from the schema, and each is changed so that it breaks it."""
    schema = schemathesis.openapi.from_dict(schema_of(served))
    asked = 0
    for result in schema.get_all_operations():
        operation = result.ok()
        if operation.path.startswith(("/api/play", "/play")):
            continue
        for mode in (schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE):
            try:
                strategy = operation.as_strategy(generation_mode=mode)
            except Exception:  # an operation without parameters cannot be asked wrongly
                continue

            @settings(max_examples=EXAMPLES, deadline=None, database=None, phases=[Phase.generate],
                      suppress_health_check=[*HealthCheck], derandomize=True)  # fmt: skip
            @given(strategy)
            def ask(case):
                nonlocal asked
                asked += 1
                check(served, case)

            with suppress(Unsatisfiable):  # an operation that no question breaks
                ask()
    assert asked > 100


def check(client, case):
    words = case.as_transport_kwargs(base_url="http://127.0.0.1:1")
    given = {name: words[name] for name in ("method", "url", "params", "json", "data", "content") if words.get(name)}
    if isinstance(given.get("data"), bytes | str):
        given["content"] = given.pop("data")
    headers = {"content-type": "application/json"} if given["method"] == "POST" else {}
    if given["method"] == "POST" and not {"json", "content", "data"} & {*given}:
        given["content"] = b""
    answer = client.client.request(**given, headers=headers)
    assert answer.status_code < 500, (given, answer.text)
    if answer.status_code >= 400:
        told = answer.json()
        assert [*told] == ["error"] and "\n" not in told["error"], told


@settings(max_examples=60, deadline=None, database=None, suppress_health_check=[*HealthCheck], derandomize=True)
@given(
    path=st.sampled_from(["/api/jobs", "/api/uploads", f"/api/atlas/networks/{'0' * 32}/tags", "/api/jobs/x"]),
    body=st.binary(max_size=300) | st.recursive(st.none() | st.integers() | st.text(max_size=5),
                                                lambda x: st.lists(x) | st.dictionaries(st.text(max_size=9), x)),
)  # fmt: skip
def test_no_body_is_an_error_of_the_server(served, path, body):
    status, told = served.post(path, body) if not isinstance(body, bytes) else served.post(path, body=body)
    assert 400 <= status < 500 and [*told] == ["error"]

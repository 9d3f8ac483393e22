"""Pipelines started on a server that speaks Kubeflow's API, and what is refused before."""

import json
import re
import shlex
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qsl

import pytest
import typer
from clipmill.pipelines.compile import DIAGRAMS
from clipmill.pipelines.registry import PIPELINES
from clipmill.pipelines.submit import check_parameters, submit
from typer.testing import CliRunner

from clipmill.errors import ArtifactError, ClusterError, ConfigError, NotFoundError

TASKS = '[{"recipe": "depth-tiny", "data": "s3://b/nyu.tar", "min_metric": 0.5}]'
REFRESH = ("--set", "store=s3://b", "--set", f"tasks={TASKS}")
NOWHERE = "http://127.0.0.1:9"


class Server(ThreadingHTTPServer):
    """The answers of Kubeflow Pipelines, as far as a submission asks."""

    daemon_threads = True

    def __init__(self, pipelines, *, multi_user=False):
        super().__init__(("127.0.0.1", 0), Handler)
        self.pipelines = pipelines
        self.multi_user = multi_user
        self.queries = []
        self.made = []

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *args):
        pass

    def answer(self, value, code=200):
        data = json.dumps(value).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self):
        path, _, query = self.path.removeprefix("/apis/v2beta1/").partition("?")
        self.server.queries.append((path, dict(parse_qsl(query))))
        known = {
            "healthz": {"multi_user": self.server.multi_user},
            "pipelines": {"pipelines": self.server.pipelines},
            "pipelines/p1/versions": {
                "pipeline_versions": [{"pipeline_id": "p1", "pipeline_version_id": "v7"}]
            },
            "experiments": {"experiments": [{"experiment_id": "e1", "display_name": "clipmill"}]},
        }
        if path in known:
            self.answer(known[path])
        else:
            self.answer({"error": f"no {path}"}, 404)

    def do_POST(self):
        path = self.path.partition("?")[0].removeprefix("/apis/v2beta1/")
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.made.append((path, body))
        names = {"runs": "run_id", "recurringruns": "recurring_run_id"}
        self.answer({names.get(path, "experiment_id"): "made-1"})


@pytest.fixture(autouse=True)
def without_a_store(monkeypatch):
    """That another test of the process may have left in the environment."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name, raising=False)


@contextmanager
def serving(**options):
    with Server([{"pipeline_id": "p1", "display_name": "refresh"}], **options) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture
def kubeflow():
    with serving() as server:
        yield server


def run(*arguments):
    app = typer.Typer()
    app.command()(submit)
    result = CliRunner().invoke(app, arguments)
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.stdout


def test_a_run_and_a_recurring_one_are_of_the_installed_version(kubeflow):
    assert run("refresh", "--endpoint", kubeflow.url, *REFRESH) == "made-1\n"
    run("refresh", "--endpoint", kubeflow.url, *REFRESH, "--every", "0 0 3 * * *")
    (once, made), (again, nightly) = kubeflow.made
    assert (once, again) == ("runs", "recurringruns")
    for body in (made, nightly):
        assert body["pipeline_version_reference"] == {
            "pipeline_id": "p1",
            "pipeline_version_id": "v7",
        }
        assert body["runtime_config"]["parameters"] == {
            "store": "s3://b",
            "tasks": json.loads(TASKS),
        }
    assert nightly["trigger"] == {"cron_schedule": {"cron": "0 0 3 * * *"}}
    assert (nightly["max_concurrency"], nightly["no_catchup"]) == (1, True)


def test_what_was_started_as_json(kubeflow):
    assert json.loads(run("refresh", "--endpoint", kubeflow.url, *REFRESH, "--json")) == {
        "run_id": "made-1",
        "pipeline_id": "p1",
        "version_id": "v7",
        "experiment_id": "e1",
    }


def test_requests_name_a_profile_in_multi_user_mode_only(kubeflow):
    def namespaces(server):
        return {query.get("namespace") for path, query in server.queries if path == "pipelines"}

    run("refresh", "--endpoint", kubeflow.url, *REFRESH, "-n", "kubeflow")
    assert namespaces(kubeflow) == {None}
    with serving(multi_user=True) as server:
        with pytest.raises(ConfigError, match="no namespace was given"):
            run("refresh", "--endpoint", server.url, *REFRESH)
        run("refresh", "--endpoint", server.url, *REFRESH, "-n", "team-a")
        assert namespaces(server) == {"team-a"}


def test_the_store_may_be_the_installations(kubeflow):
    run("refresh", "--endpoint", kubeflow.url, "--set", f"tasks={TASKS}")
    ((_, body),) = kubeflow.made
    assert "store" not in body["runtime_config"]["parameters"]


def test_a_pipeline_that_is_not_installed(kubeflow):
    kubeflow.pipelines = []
    with pytest.raises(ClusterError, match="has no pipeline 'refresh'"):
        run("refresh", "--endpoint", kubeflow.url, *REFRESH)
    assert kubeflow.made == []


def test_no_cluster_is_one_message():
    with pytest.raises(ClusterError, match=f"{NOWHERE} can't be reached"):
        run("refresh", "--endpoint", NOWHERE, *REFRESH)


def test_a_pipelines_defaults_are_right():
    for pipeline in PIPELINES.values():
        check_parameters(pipeline, {})


def test_the_pages_commands_pass_the_check():
    page = DIAGRAMS.read_text().replace("\\\n", " ")
    blocks = re.findall(r"(?ms)^python -m clipmill.pipelines.submit (.*?)^```", page)
    assert len(blocks) == 3
    for block in blocks:
        assert run(*shlex.split(block), "--check") == ""


@pytest.mark.parametrize(
    ("pipeline", "sets", "kind", "words"),
    [
        ("refesh", [], ConfigError, "there is no pipeline 'refesh'"),
        ("refresh", ["shop=s3://b"], ConfigError, "refresh has no parameter 'shop'"),
        ("refresh", ["store=s3://b"], ConfigError, "refresh lacks tasks"),
        ("refresh", ["tasks=depth"], ConfigError, "tasks was 'depth'"),
        ("refresh", ["captions=all"], ConfigError, "captions was 'all'"),
        ("refresh", ["captioner=blop:x"], ConfigError, "'blop:x' has the unknown scheme 'blop'"),
        ("refresh", ["clip_recipe=depth-tiny"], ConfigError, "depth-tiny"),
        ("refresh", ['clip_overrides=["train.steps=-1"]'], ConfigError, "steps was -1"),
        (
            "refresh",
            ['tasks=[{"recipe": "a", "data": "b"}]'],
            ConfigError,
            r"tasks\[0\].min_metric",
        ),
        ("refresh", [f"tasks={TASKS.replace('depth-tiny', 'tiny')}"], ConfigError, "'tiny'"),
        ("end-to-end", ['finetune_overrides=["model.crop=1"]'], ConfigError, "model.crop"),
        ("end-to-end", ["clip_overrides=high"], ConfigError, "clip_overrides was 'high'"),
        (
            "pretrain-encoder-distributed",
            ["start_timeout_seconds=half"],
            ConfigError,
            "start_timeout_seconds was 'half'",
        ),
        ("end-to-end", ["min_miou=5"], ConfigError, "end-to-end has no parameter 'min_miou'"),
    ],
)
def test_a_wrong_parameter_is_one_message(pipeline, sets, kind, words):
    given = dict(s.partition("=")[::2] for s in REFRESH[1::2] if pipeline == "refresh")
    if "store=s3://b" in sets:
        given = {}
    if pipeline == "end-to-end":
        given = {"store": "s3://b"}
    given |= dict(s.partition("=")[::2] for s in sets)
    options = [part for name, value in given.items() for part in ("--set", f"{name}={value}")]
    with pytest.raises(kind, match=words):
        run(pipeline, "--endpoint", NOWHERE, *options)


def test_an_artifact_that_is_not_there_is_one_message(tmp_path):
    at = ("--set", f"store={tmp_path}")
    gone = f"{tmp_path}/encoders/both-000000000000"
    with pytest.raises(NotFoundError, match="both-000000000000"):
        run("encoder-to-tasks", "--endpoint", NOWHERE, *at,
            "--set", f"encoder={gone}", "--set", f"tasks={TASKS}")  # fmt: skip
    with pytest.raises(ArtifactError, match=r"there is no dataset at .*0000"):
        run("pretrain-encoder-distributed", "--endpoint", NOWHERE, *at, "--set", "captioner=c",
            "--set", "namespace=n", "--set", f"dataset={tmp_path}/datasets/0000")  # fmt: skip

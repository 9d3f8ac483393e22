"""``python -m clipmill.pipelines.submit PIPELINE``: start a pipeline that a cluster has.

With ``--every`` it is started again and again. Runs are of the version that the chart installed
last, which knows the cluster's pools and images, its store and its namespace.
"""

import contextlib
import json
import sys
import warnings
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import typer

from clipmill.cli.entry import run
from clipmill.cli.extras import needs
from clipmill.cli.options import Json
from clipmill.errors import ClusterError, ConfigError, NotFoundError, StorageError

_TIMEOUT_SECONDS = 10
_INSTALLED = {"store", "namespace"}
"""Parameters whose default the chart compiles into the installed version."""
_TYPES = {
    "STRING": str,
    "LIST": list,
    "STRUCT": dict,
    "NUMBER_DOUBLE": float,
    "NUMBER_INTEGER": int,
}
_EXPECTED = {list: "a JSON list", dict: "a JSON object", float: "a number", int: "a whole number"}


def submit(
    pipeline: Annotated[str, typer.Argument(help="Name of the pipeline.")],
    endpoint: Annotated[str, typer.Option(help="URL of Kubeflow Pipelines' API.")],
    namespace: Annotated[
        str,
        typer.Option("-n", "--namespace", help="Namespace of a profile, in multi-user mode only."),
    ] = "",
    every: Annotated[
        str,
        typer.Option(
            help="Schedule of a recurring run, as cron with seconds: '0 0 3 * * *' is daily at 3."
        ),
    ] = "",
    experiment: Annotated[str, typer.Option(help="Experiment that lists the runs.")] = "clipmill",
    sets: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="Parameter of the pipeline; repeatable."),
    ] = None,
    check_only: Annotated[
        bool, typer.Option("--check", help="Check the parameters without starting a run.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Check the parameters and start a run, or a recurring run; prints its id."""
    from clipmill.pipelines.registry import PIPELINES, RENAMED_PIPELINES

    if pipeline not in PIPELINES:
        renamed = RENAMED_PIPELINES.get(pipeline)
        raise ConfigError(
            f"there is no pipeline {pipeline!r}",
            expected=f"one of {', '.join(PIPELINES)}",
            action=f"it is called {renamed} since 0.2" if renamed else "correct its name",
        )
    parameters = parse_parameters(PIPELINES[pipeline], sets or [])
    check_parameters(PIPELINES[pipeline], parameters)
    if check_only:
        return
    started = _start(pipeline, parameters, endpoint, namespace, every, experiment)
    typer.echo(json.dumps(started) if as_json else next(iter(started.values())))


def _start(
    name: str,
    parameters: dict[str, Any],
    endpoint: str,
    namespace: str,
    every: str,
    experiment: str,
) -> dict[str, str]:
    """Start a run, or a recurring run; return its id, and those of its version and experiment."""
    from kfp import Client
    from kfp_server_api import ApiException

    profile = _profile(endpoint, namespace)
    # kfp prints links.
    with contextlib.redirect_stdout(sys.stderr), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # that old servers aren't supported
        try:
            return _create(Client(host=endpoint), name, parameters, profile, every, experiment)
        except ApiException as error:
            raise ClusterError(
                f"{endpoint} answered {error.status}: {str(error.body)[:300]}",
                expected="an answer of 2xx",
                action="fix what the message names, or log in",
            ) from error


def _create(
    client: Any,
    name: str,
    parameters: dict[str, Any],
    profile: str | None,
    every: str,
    experiment: str,
) -> dict[str, str]:
    listed = client.list_pipelines(page_size=200, namespace=profile).pipelines or []
    ids = [p.pipeline_id for p in listed if p.display_name == name]
    if not ids:
        raise ClusterError(
            f"Kubeflow Pipelines has no pipeline {name!r}"
            + (f" in namespace {profile}" if profile else ""),
            expected="one that the chart installed",
            action="helm install clipmill first, with pipelines.kubeflow.namespace set to the "
            "namespace of Kubeflow Pipelines, or in multi-user mode of the profile",
        )
    versions = client.list_pipeline_versions(
        ids[0], page_size=1, sort_by="created_at desc"
    ).pipeline_versions
    version = {"pipeline_id": ids[0], "version_id": versions[0].pipeline_version_id}
    group = client.create_experiment(experiment, namespace=profile).experiment_id
    if every:
        recurring = client.create_recurring_run(
            group,
            name,
            cron_expression=every,
            max_concurrency=1,
            no_catchup=True,
            params=parameters,
            **version,
        )
        started = {"recurring_run_id": recurring.recurring_run_id}
    else:
        run_id = client.run_pipeline(group, name, params=parameters, **version).run_id
        started = {"run_id": run_id}
    return {**started, **version, "experiment_id": group}


def _profile(endpoint: str, namespace: str) -> str | None:
    """Return the namespace to name in requests: a profile's in multi-user mode, else None.

    One request; kfp's client would retry for half a minute, and end in a traceback.
    """
    import urllib3

    try:
        answer = urllib3.request(
            "GET",
            f"{endpoint.rstrip('/')}/apis/v2beta1/healthz",
            timeout=_TIMEOUT_SECONDS,
            retries=False,
        )
    except urllib3.exceptions.HTTPError as error:
        raise ClusterError(
            f"{endpoint} can't be reached: {error}",
            expected="the URL of Kubeflow Pipelines' API, such as http://127.0.0.1:8888",
            action="kubectl -n kubeflow port-forward svc/ml-pipeline 8888, and try again",
        ) from error
    try:
        is_multi_user = answer.json().get("multi_user", False)
    except ValueError:  # a login page; the next request says so
        is_multi_user = bool(namespace)
    if is_multi_user and not namespace:
        raise ConfigError(
            f"no namespace was given, and {endpoint} is in multi-user mode",
            expected="the namespace of a profile",
            action="pass it with -n",
        )
    return namespace if is_multi_user else None


def parse_parameters(pipeline: Any, assignments: Sequence[str]) -> dict[str, Any]:
    """Return parameters from ``NAME=VALUE``; lists, dicts and numbers are JSON.

    Raises:
        ConfigError: there is no such parameter, a value is of another type, or one is missing.
    """
    inputs = pipeline.pipeline_spec.root.input_definitions.parameters
    kinds = {name: _TYPES[_kind_name(spec)] for name, spec in inputs.items()}
    parsed = {}
    for assignment in assignments:
        name, _, text = assignment.partition("=")
        if name not in kinds:
            raise ConfigError(
                f"{pipeline.name} has no parameter {name!r}",
                expected=f"one of {', '.join(sorted(kinds))}",
                action="correct its name",
            )
        parsed[name] = _value(name, text, kinds[name])
    known = parsed.keys() | _INSTALLED
    missing = sorted(n for n, spec in inputs.items() if not spec.is_optional and n not in known)
    if missing:
        raise ConfigError(
            f"{pipeline.name} lacks {', '.join(missing)}",
            expected="a value for each parameter without a default",
            action=f"give --set {missing[0]}=VALUE",
        )
    return parsed


def check_parameters(pipeline: Any, parameters: Mapping[str, Any]) -> None:
    """Check parameters, before anything is started, for errors that a task would raise.

    Raises:
        ConfigError: a recipe, override, caption source or task specification is invalid.
        NotFoundError, ArtifactError: an encoder or dataset that isn't there. A store that can't be
            read from here is left to the tasks.
    """
    from clipmill.data.captioners import captioner_kind
    from clipmill.data.dataset import Dataset
    from clipmill.models.pretrained import check_address
    from clipmill.recipes.registry import get_recipe, recipe_type
    from clipmill.stages.pretrain import CAPTION_LABELS
    from clipmill.stages.tasks import TaskSpec
    from clipmill.tasks.finetune import FinetuneConfig

    inputs = pipeline.pipeline_spec.root.input_definitions.parameters
    every = {name: spec.default_value.string_value for name, spec in inputs.items()}
    every |= parameters
    for name, spec in inputs.items():
        if not name.endswith("_recipe"):
            continue
        kind = recipe_type(spec.default_value.string_value)
        # Fine-tunings share their overrides.
        shared = "finetune_overrides" if kind is FinetuneConfig else ""
        overrides = name.replace("_recipe", "_overrides")
        get_recipe(every[name], kind, parameters.get(overrides, parameters.get(shared, [])))
    if "captions" in every and every["captions"] not in CAPTION_LABELS:
        raise ConfigError(
            f"captions was {every['captions']!r}",
            expected=f"one of {', '.join(CAPTION_LABELS)}",
            action="correct it",
        )
    if parameters.get("captioner"):
        captioner_kind(parameters["captioner"])
    for number, task in enumerate(parameters.get("tasks", [])):
        _ = TaskSpec.from_json(task, f"tasks[{number}]").sweep
    try:
        if "encoder" in parameters:
            check_address(parameters["encoder"])
        if "dataset" in parameters:
            Dataset.open(parameters["dataset"])
    except NotFoundError:
        raise
    except StorageError:
        return


def _kind_name(spec: Any) -> str:
    from kfp.pipeline_spec.pipeline_spec_pb2 import ParameterType

    return str(ParameterType.ParameterTypeEnum.Name(spec.parameter_type))


def _value(name: str, text: str, kind: type) -> Any:
    if kind is str:
        return text
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, kind) or isinstance(value, bool):
        raise ConfigError(
            f"{name} was {text!r}",
            expected=_EXPECTED[kind],
            action="write it as JSON, in single quotes for the shell",
        )
    return value


def main() -> None:
    """Run the command; errors and exit codes are those of the ``clipmill`` command."""
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(needs("pipelines")(submit))
    run(app)


if __name__ == "__main__":
    main()

"""``python -m clipmill.pipelines.submit PIPELINE``: start a pipeline that a cluster has.

With ``--every`` it is started again and again. Runs are of the version that the chart installed
last, which knows the cluster's pools and images.
"""

import warnings
from typing import Annotated, Any

import typer

from clipmill.cli.entry import run
from clipmill.cli.extras import needs
from clipmill.errors import ClusterError, ConfigError

_TIMEOUT_SECONDS = 10


def submit(
    pipeline: Annotated[str, typer.Argument(help="Name of the pipeline.")],
    endpoint: Annotated[str, typer.Option(help="URL of Kubeflow Pipelines' API.")],
    namespace: Annotated[
        str, typer.Option("-n", "--namespace", help="Namespace of the pipeline and its runs.")
    ] = "clipmill",
    every: Annotated[
        str, typer.Option(help="Again and again: cron with seconds, '0 0 3 * * *' is at three.")
    ] = "",
    experiment: Annotated[str, typer.Option(help="What its runs are listed under.")] = "clipmill",
    sets: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="A parameter; repeatable."),
    ] = None,
    check_only: Annotated[
        bool, typer.Option("--check", help="Look through the parameters; start nothing.")
    ] = False,
) -> None:
    """Check the parameters and start a run, or a recurring run; prints its id."""
    from clipmill.pipelines.parameters import check, parse
    from clipmill.pipelines.registry import PIPELINES

    if pipeline not in PIPELINES:
        raise ConfigError(
            f"there is no pipeline {pipeline!r}",
            expected=f"one of {', '.join(PIPELINES)}",
            action="correct its name",
        )
    parameters = parse(PIPELINES[pipeline], sets or [])
    check(PIPELINES[pipeline], parameters)
    if not check_only:
        typer.echo(_start(pipeline, parameters, endpoint, namespace, every, experiment))


def _start(
    name: str,
    parameters: dict[str, Any],
    endpoint: str,
    namespace: str,
    every: str,
    experiment: str,
) -> str:
    from kfp import Client
    from kfp_server_api import ApiException

    _require_answer(endpoint)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # that old servers aren't supported
            client = Client(host=endpoint, namespace=namespace)
        pipeline_id = client.get_pipeline_id(name)
        if pipeline_id is None:
            raise ClusterError(
                f"{endpoint} has no pipeline {name!r}",
                expected="one that the chart installed",
                action="helm install clipmill first, with pipelines.enabled",
            )
        found = client.list_pipeline_versions(
            pipeline_id, page_size=1, sort_by="created_at desc"
        ).pipeline_versions
        group = client.create_experiment(experiment, namespace=namespace).experiment_id
        version = {"pipeline_id": pipeline_id, "version_id": found[0].pipeline_version_id}
        if every:
            return client.create_recurring_run(
                group,
                name,
                cron_expression=every,
                max_concurrency=1,
                no_catchup=True,
                params=parameters,
                **version,
            ).recurring_run_id
        return client.run_pipeline(group, name, params=parameters, **version).run_id
    except ApiException as error:
        raise ClusterError(
            f"{endpoint} answered {error.status}: {str(error.body)[:300]}",
            expected="an answer of 2xx",
            action="mend what the message names, or log in",
        ) from error


def _require_answer(endpoint: str) -> None:
    """Ask once; kfp's client would try for half a minute, and end in a traceback."""
    import urllib3

    try:
        urllib3.request(
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


def main() -> None:
    """Run the command; errors and exit codes are those of the ``clipmill`` command."""
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(needs("pipelines")(submit))
    run(app)


if __name__ == "__main__":
    main()

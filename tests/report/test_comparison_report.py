"""What else differs between the labels."""

from dataclasses import asdict, replace

from clipmill.lineage import Parent
from clipmill.models.checkpoint import CheckpointMetadata, read_metadata
from clipmill.report.comparison import Check, check_comparability, compare, comparison_markdown
from clipmill.report.format import NO_BREAK
from clipmill.storage import write_json
from helpers.comparisons import task_result


def check(
    run, models: dict[tuple[str, str], CheckpointMetadata] | None = None
) -> tuple[Check, ...]:
    encoders = {label: read_metadata(uri) for label, uri in run.inputs.encoders.items()}
    return check_comparability(compare(run.inputs.evaluations), encoders, models or run.models)


def troubles(checks: tuple[Check, ...]) -> list[str]:
    return [check.words for check in checks if not check.fair]


def test_a_comparison_as_a_markdown_table(tmp_path) -> None:
    tasks = [
        task_result("segmentation", {"G": 34.0, "G+S": 36.44}),
        task_result("depth", {"G": 0.9, "G+S": 0.8}),
    ]
    write_json(
        f"{tmp_path}/comparison.json",
        {"digest": "d", "tasks": [asdict(task) for task in tasks], "pretraining": {}},
    )
    assert comparison_markdown(str(tmp_path)).replace(NO_BREAK, " ") == (
        "| task | metric | G | G+S | random weights | required to serve |\n"
        "| --- | --- | --- | --- | --- | --- |\n"
        "| segmentation | mIoU | 34.0 % | 36.4 % | 20.1 % to 21.0 % | 21.9 % |\n"
        "| depth | RMSE | 0.900 m | 0.800 m | 1.000 m to 1.020 m | 0.930 m |\n"
    )


def test_runs_that_differ_in_captions_alone_are_fair(make_run) -> None:
    checks = check(make_run())
    assert troubles(checks) == []
    assert checks[0].words == "The encoders share the same pairs and one recipe, captions aside"


def test_other_differences_of_the_encoders_are_named(make_run) -> None:
    found = check(make_run(seeds={"G+S": 1}, steps={"G": 60}))
    assert troubles(found) == ["The encoders also differ in train.seed and train.steps"]
    assert found[0].words == "The encoders share the same pairs"


def test_other_differences_of_the_task_models_are_named(make_run) -> None:
    run = make_run()
    metadata = run.models["G+S", "depth"]
    recipe = metadata.recipe | {"train": metadata.recipe["train"] | {"batch_size": 7}}
    parents = (metadata.parents[0], Parent(role="data", uri="elsewhere", digest="9" * 64))
    changed = replace(metadata, recipe=recipe, parents=parents)
    assert troubles(check(run, {**run.models, ("G+S", "depth"): changed})) == [
        "The depth models also differ in train.batch_size",
        "The depth models were trained on different data",
    ]


def test_a_model_of_another_encoder_is_found(make_run) -> None:
    run = make_run()
    swapped = {**run.models, ("G", "depth"): run.models["G+S", "depth"]}
    assert troubles(check(run, swapped)) == [
        "The depth model of G isn't made from that label's encoder"
    ]


def test_other_test_data_is_found(make_run) -> None:
    run = make_run()
    tasks = list(compare(run.inputs.evaluations))
    found = tasks[0].evaluations["G"]
    other = replace(found, data=replace(found.data, digest="9" * 64))
    tasks[0] = replace(tasks[0], evaluations={**tasks[0].evaluations, "G": other})
    encoders = {label: read_metadata(uri) for label, uri in run.inputs.encoders.items()}
    assert troubles(check_comparability(tasks, encoders, run.models)) == [
        "The segmentation models were evaluated on different test data"
    ]

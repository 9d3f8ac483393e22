"""Compile a pipeline and submit it to Kubeflow Pipelines: from an encoder to task models.

python examples/submit_to_kubeflow.py --endpoint http://127.0.0.1:8888 --store s3://bucket/out \
    --encoder open_clip:ViT-B-16/openai --data s3://bucket/ade20k.tar

Without --endpoint it checks the parameters and writes the compiled pipeline, and submits nothing.
"""

import argparse
from pathlib import Path

import kfp
from clipmill.pipelines.registry import PIPELINES
from clipmill.pipelines.submit import check_parameters


def main() -> None:
    """Run the example."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--endpoint", help="URL of Kubeflow Pipelines' API")
    parser.add_argument("--namespace", default="kubeflow", help="namespace of the run")
    parser.add_argument("--store", default="s3://clipmill/out", help="s3:// URI of the results")
    parser.add_argument("--encoder", default="random:timm/test_byobnet", help="docs/weights.md")
    parser.add_argument("--data", default="s3://clipmill/ade20k.tar", help="labeled data")
    parser.add_argument("--recipe", default="linear-segmentation-tiny", help="a recipe's name")
    parser.add_argument("--output", type=Path, default=Path("pipeline.yaml"), help="compiled file")
    options = parser.parse_args()

    pipeline = PIPELINES["encoder-to-tasks"]
    task = {"recipe": options.recipe, "data": options.data, "min_metric": 0.4}
    parameters = {
        "store": options.store,
        "encoder": options.encoder,
        "tasks": [task],
    }
    check_parameters(pipeline, parameters)
    kfp.compiler.Compiler().compile(pipeline, str(options.output))
    print(f"{options.output}: {pipeline.name}, {parameters}")
    if options.endpoint:
        client = kfp.Client(host=options.endpoint, namespace=options.namespace)
        run = client.create_run_from_pipeline_package(
            str(options.output), arguments=parameters, experiment_name="examples"
        )
        print(run.run_id)


if __name__ == "__main__":
    main()

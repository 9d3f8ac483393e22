"""Which datasets a recurring run has been through: a record each, by digest."""

from clipmill.data.dataset import Dataset
from clipmill.storage import exists, join, write_json


def is_new(dataset: str, store: str) -> bool:
    """Whether no refresh of ``store`` has been finished with this dataset.

    Raises:
        ArtifactError: there is no such dataset.
    """
    return not exists(_record(Dataset.open(dataset).digest, store))


def remember(dataset: str, store: str, run: str) -> None:
    """Keep that ``run`` was finished with this dataset; ArtifactError where there is none."""
    opened = Dataset.open(dataset)
    value = {"dataset": opened.uri, "digest": opened.digest, "run": run}
    write_json(_record(opened.digest, store), value)


def _record(digest: str, store: str) -> str:
    return join(store, "refreshed", f"{digest[:12]}.json")

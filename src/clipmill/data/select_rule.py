"""A rule of selection: its config, and what it reads of a given dataset."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from clipmill.config import Config
from clipmill.data.caption_choice import ChoiceConfig
from clipmill.data.dataset import Dataset, cache_folder
from clipmill.data.filters.contract import CAPTION_KINDS, FilterConfig
from clipmill.data.filters.registry import FILTERS
from clipmill.data.layer_names import find_layer
from clipmill.data.layer_rows import REAL
from clipmill.data.layers import layer_schema
from clipmill.digest import digest_json
from clipmill.errors import ConfigError
from clipmill.storage import Parent

CHOICE = "caption-choice"
"""What the choice of captions is called where it refuses a sample."""
_MOST_FILTERS = 254

Step = ChoiceConfig | FilterConfig
"""What a rule does one after the other."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FilterStep(Config):
    """One filter with its settings."""

    filter: str
    """Its name among FILTERS."""
    settings: dict[str, bool | int | float | str] = field(default_factory=dict)
    """Those of its settings that aren't at their default."""

    def __post_init__(self) -> None:
        """Refuse an unknown filter or setting (ConfigError), and spell the settings out."""
        if self.filter not in FILTERS:
            raise ConfigError(
                f"there is no filter {self.filter!r}",
                expected=f"one of {', '.join(FILTERS)}",
                action="correct its name",
            )
        # Spelled out, so that equal steps have equal digests.
        object.__setattr__(self, "settings", self.config.to_json())

    @property
    def config(self) -> FilterConfig:
        """The filter's own config."""
        return FILTERS[self.filter].from_json(self.settings, self.filter)


def steps(*filters: FilterConfig) -> tuple[FilterStep, ...]:
    """The filters as a rule's steps."""
    names = {kind: name for name, kind in FILTERS.items()}
    return tuple(
        FilterStep(filter=names[type(config)], settings=config.to_json()) for config in filters
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class SelectConfig(Config):
    """A rule: a choice of captions, then filters one after the other."""

    name: str
    """Short name of the rule; the layer is ``select/<name>-<digest>``."""
    choice: ChoiceConfig = ChoiceConfig()
    """Which caption of each sample is meant."""
    filters: tuple[FilterStep, ...] = ()
    """Each sees what the earlier ones left."""

    def __post_init__(self) -> None:
        """Refuse more filters than a byte can number (ConfigError)."""
        if len(self.filters) > _MOST_FILTERS:
            raise ConfigError(
                f"filters had {len(self.filters)} entries",
                expected=f"at most {_MOST_FILTERS}",
                action="select twice, and name both layers in the view",
            )

    @property
    def labels(self) -> tuple[str, ...]:
        """What each step, the choice first, is called where it refuses a sample."""
        names = [step.filter for step in self.filters]
        return (
            CHOICE,
            *(
                name if names.count(name) == 1 else f"{name}-{names[: place + 1].count(name)}"
                for place, name in enumerate(names)
            ),
        )


@dataclass(frozen=True, slots=True)
class Rule:
    """A rule whose layers were found."""

    steps: tuple[Step, ...]
    """The choice of captions, then the filters."""
    kinds: tuple[str, ...]
    """The caption kinds among which is chosen, the real one first."""
    names: Mapping[str, str]
    """The layer's full name for each name in the config."""
    layer: str
    """The name of the layer that it makes."""

    def columns(self, step: Step) -> dict[str, tuple[str, ...]]:
        """What a step reads, by the layer as the config names it."""
        return {
            layer: tuple(
                column
                for wanted in columns
                for column in (self.kinds if wanted == CAPTION_KINDS else (wanted,))
            )
            for layer, columns in step.needs.items()
        }

    def parents(self, dataset: Dataset) -> tuple[Parent, ...]:
        """The layers that the rule reads."""
        used = sorted({*self.names.values(), *self.kinds[1:]})
        return tuple(
            Parent(
                role=name.partition("/")[0],
                uri=dataset.layer_uri(name),
                digest=dataset.layers[name].digest,
            )
            for name in used
        )


def resolve_rule(config: SelectConfig, dataset: Dataset, layers: Sequence[str]) -> Rule:
    """The rule over this dataset's layers; those in ``layers`` are looked in first.

    Raises ConfigError if a layer or column that is needed isn't there, or a name fits several.
    """

    def find(wanted: str) -> str:
        given = [name for name in layers if name == wanted or name.startswith(f"{wanted}-")]
        return find_layer(dataset.layers, given[0] if len(given) == 1 else wanted)

    captions = sorted(name for name in dataset.layers if name.startswith("captions/"))
    if config.choice.rule == "real":
        captions = []
    elif config.choice.layers:
        captions = [find(wanted) for wanted in config.choice.layers]
    elif not captions:
        raise ConfigError(
            f"choice.rule was {config.choice.rule!r}, and {dataset.uri} has no captions layer",
            expected="synthetic captions to choose from",
            action="recaption the dataset first",
        )
    steps: tuple[Step, ...] = (config.choice, *(step.config for step in config.filters))
    names = {wanted: find(wanted) for step in steps for wanted in step.needs}
    digests = {wanted: dataset.layers[name].digest for wanted, name in names.items()}
    key = [config.to_json(), digests, [dataset.layers[name].digest for name in captions]]
    rule = Rule(
        steps=steps,
        kinds=(REAL, *captions),
        names=names,
        layer=f"select/{config.name}-{digest_json(key)[:8]}",
    )
    for step in steps:
        for wanted, columns in rule.columns(step).items():
            _check_columns(dataset, names[wanted], columns)
    return rule


def _check_columns(dataset: Dataset, layer: str, columns: Sequence[str]) -> None:
    known = layer_schema(dataset, layer, cache_folder()).names
    for column in columns:
        if column not in known:
            raise ConfigError(
                f"layer {layer} has no column {column}",
                expected=f"one of its columns: {', '.join(known)}",
                action="score the dataset again, now that it has these captions"
                if column.startswith("captions/")
                else "name another layer, or compute one that has it",
            )

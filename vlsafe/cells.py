"""Cells: composed configs, checked field by field and turned into components. Nothing here needs torch.

A composed config is never changed. What Hydra's struct mode lets through (`+merge.densty=0.2`) is caught here.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, TypeVar, cast, get_args

from vlsafe import registry
from vlsafe.data.rows import Purpose, TrainingData
from vlsafe.errors import ConfigError
from vlsafe.registry import Component
from vlsafe.roles import Order, RoleTable, role_table
from vlsafe.settings import PositiveFloat, PositiveInt, Seed, build, closest, settings_of, spec_of
from vlsafe.sources import REVISIONS, placed

T = TypeVar("T")
GRID_GROUPS = ("model", "adaptation", "safety_tune", "merge")
OTHER_GROUPS = ("data", "eval", "judge", "engine", "deepspeed", "tracking", "analysis")
GROUPS = GRID_GROUPS + OTHER_GROUPS
PADDING = "engine.pad_to_square"


@dataclass(frozen=True)
class RunSettings:
    """How a sweep runs and where its results go; none of it changes a result but `seed`."""

    seed: Seed = 0
    sweep: str | None = None  # the sweep's name; by default made from the command's overrides
    outputs: str = "outputs"
    store: str = "outputs/store"
    stand_in: Literal["tiny"] | None = None  # tiny invented models and rows in place of the hub's (vlsafe/stand_in)
    jobs: PositiveInt | None = None  # stages at a time; by default one a core
    threads: PositiveInt | None = None  # of each stage; by default all cores for training from scratch, else 1
    checkpoint_seconds: PositiveFloat = 20.0
    device: Literal["auto", "cpu", "cuda"] = "auto"
    local: str | None = None  # a mirror of the hub: org/name below it is read in place of the hub's
    live: bool = True  # a live view where there is a terminal
    num_processes: PositiveInt | None = None  # of a training stage, over all nodes; by default 1, or all GPUs with deepspeed
    num_nodes: PositiveInt = 1
    micro_batch_size: PositiveInt | None = None  # rows that a process takes at once; by default its share of the global batch
    gradient_checkpointing: bool = False


@dataclass(frozen=True)
class Cell:
    """One point of the grid. `config` is the resolved config it was composed to, `choices` the option of each group."""

    choices: Mapping[str, str]
    config: Mapping[str, Any]
    run: RunSettings
    components: Mapping[str, Any] = field(repr=False)  # by group
    roles: RoleTable

    @property
    def seed(self) -> int:
        return self.run.seed

    @property
    def order(self) -> Order:
        return cast(Order, self.components["safety_tune"].order)

    def flat(self) -> dict[str, Any]:
        """Every setting that a result depends on, by dotted path, with each group's option under the group's name."""
        flat: dict[str, Any] = {"seed": self.seed}
        for group in GROUPS:
            if group in ("deepspeed", "tracking"):
                continue
            flat[group] = self.choices[group]
            flat |= flatten(spec_of(self.components[group]), group)
        own = self.components["adaptation"].filter_settings()
        return flat | (flatten(own, "adaptation.filter") if own else {})

    def value(self, path: str) -> Any:
        """The value of a dotted path, settings of execution included; None where this cell has no such setting."""
        if path in self.choices:
            return self.choices[path]
        value: Any = self.config
        for part in path.split("."):
            if not isinstance(value, Mapping) or part not in value:
                return None
            value = value[part]
        return value

    def label(self) -> str:
        """How messages name it: `model=microworld adaptation=llava safety_tune=sft merge=ties`."""
        return " ".join(f"{g}={self.choices[g]}" for g in GRID_GROUPS)


def flatten(value: Any, prefix: str) -> dict[str, Any]:
    if isinstance(value, Mapping):
        return {k: v for name, item in value.items() for k, v in flatten(item, f"{prefix}.{name}").items()}
    return {prefix: value}


def make_cell(config: Mapping[str, Any], choices: Mapping[str, str]) -> Cell:
    """The cell of a resolved config; raises `ConfigError` for whatever it can't be."""
    known = [f.name for f in fields(RunSettings)]
    for name in config:
        if name not in GROUPS and name not in known:
            raise ConfigError(f"{name}: unknown setting; {closest(str(name), [*GROUPS, *known])}")
    run = build(RunSettings, {k: v for k, v in config.items() if k in known}, "")
    if run.num_processes is not None and run.num_processes % run.num_nodes:
        raise ConfigError(
            f"num_processes={run.num_processes}: not a multiple of num_nodes={run.num_nodes}; it counts those of all nodes"
        )
    components: dict[str, Any] = {}
    for group in GROUPS:
        settings = config.get(group)
        if not isinstance(settings, Mapping):
            raise ConfigError(f"{group}: no option chosen; {group}=NAME, from: {', '.join(registry.names(group))}")
        made = registry.make(group, settings)
        components[group] = made if group == "data" else at_home(made, run)
    for component in components.values():
        check = getattr(component, "check", None)
        if check is not None:
            check()
    data = cast(TrainingData, components["data"])
    data.check_model(components["model"])
    asked = purposes(components)
    data.check_purposes(asked or ())
    components["data"] = at_home(data.used(asked), run)
    components["eval"].check_model(components["model"])
    for part in [components["data"], *(at_home(benchmark, run) for benchmark in components["eval"].build())]:
        part.check_files()
    adaptation, tuning = components["adaptation"], components["safety_tune"]
    adaptation.check_model(components["model"])
    if tuning.trains:
        adaptation.check_order(tuning.order)
    roles = role_table(adaptation.trains, tuning.trains, tuning.order, components["model"].offers_unaligned)
    if any(role.stage == "safety_tune" and not role.sees_images for role in roles.roles):
        tuning.check_text_only()
    cell = Cell(dict(choices), config, run, components, roles)
    check_roles(cell)
    return cell


def purposes(groups: Mapping[str, Any]) -> tuple[Purpose, ...] | None:
    """What the stages of these components ask rows for; None where one of them doesn't say."""
    asked = [groups[g].purposes() for g in ("adaptation", "safety_tune") if g in groups and groups[g].trains]
    return None if None in asked else tuple(dict.fromkeys(purpose for some in asked for purpose in some))


def check_read(cells: Sequence[Cell], named: Iterable[str]) -> None:
    """Raises `ConfigError` for rows that the command names (`data.instruct.…`) and no stage of any cell reads."""
    asked = [purposes(cell.components) for cell in cells]
    if not asked or None in asked:
        return
    read = {purpose for some in asked for purpose in some or ()}
    for name in named:
        group, _, rest = name.partition(".")
        purpose = rest.partition(".")[0]
        if group == "data" and purpose in get_args(Purpose) and purpose not in read:
            raise ConfigError(
                f"{name}: no stage reads {purpose} rows here (they read: {', '.join(sorted(read)) or 'none'}): leave it out, or"
                " give them a share (adaptation.pairs below 1 for instructions, safety_tune.helpful, an option that trains)"
            )


def check_padding(cells: Sequence[Cell], named: Collection[str]) -> None:
    """Raises `ConfigError` where a model would be asked of pictures in another shape than it learned them in: all of what it
    learns last is padded to a square and evaluation's are not, or the other way round. Named in the command, it stands."""
    for cell in cells:
        asked = purposes(cell.components) or ()
        learned = cell.components["data"].padded([purpose for purpose in asked if purpose != "projector"])
        shown = getattr(cell.components["engine"], PADDING.rpartition(".")[2], None)
        if PADDING in named or shown is None or not learned or shown in learned.values():
            continue
        others = ", ".join(f"{name}={str(not shown).lower()}" for name in learned)
        raise ConfigError(
            f"{PADDING}={str(shown).lower()} and {others}: the model would"
            f" be asked of other pictures than it learned from; set them alike, or name {PADDING} in the command to have it so"
        )


def check_worlds(config: Mapping[str, Any], choices: Mapping[str, str]) -> None:
    """Raises `ConfigError` where the microworld's rows or benchmarks would meet a model that knows nothing of it. The config
    need not be resolved: their world is the model's."""
    for group, what in (("data", "rows"), ("eval", "benchmarks")):
        rows, model = (list(config.get(name) or ()) for name in (group, "model"))
        if "world" in rows and model and "world" not in model:
            raise ConfigError(
                f"{group}={choices[group]}: the microworld's {what} say nothing to model={choices['model']}; a preset sets all"
                f" that a real model needs: +experiment={preset_for(config)} model={choices['model']} (docs/presets.md has"
                " more)"
            )


def preset_for(config: Mapping[str, Any]) -> str:
    """A released vision-language model has its adaptation behind it; any other is to be adapted."""
    model = config["model"]
    if "lvlm" not in model:
        return "paper_llama2"
    return "qwen25_vl_released" if "qwen" in str(model["lvlm"]).lower() else "llava15_released"


def at_home(component: T, run: RunSettings) -> T:
    """The component with its sources resolved: the mirror where there is one, else the commit that the store remembers."""
    local = None if run.local is None else str(Path(run.local).expanduser().absolute())
    if local is not None and not Path(local).is_dir():
        raise ConfigError(f"local={run.local}: there is no such folder; it holds models and data sets as org/name")
    return placed(component, local, Path(run.store) / REVISIONS)


def check_roles(cell: Cell) -> None:
    """Raises `ConfigError` where the merge names a role that the cell can't have."""
    merge = cell.components["merge"]
    if not merge.merges:
        return
    try:
        for name in [*merged_roles(cell), *([merge.base] if merge.needs_base else []), carrier_role(cell)]:
            cell.roles[name]
    except ConfigError as error:
        raise ConfigError(f"{cell.label()}: {error}") from None
    check_layers(merge.scope, components_layers(cell))
    if merge.weights is not None and len(merge.weights) != len(merged_roles(cell)):
        raise ConfigError(
            f"merge.weights={list(merge.weights)}: {len(merge.weights)} weights for "
            f"{len(merged_roles(cell))} models ({', '.join(merged_roles(cell))})"
        )


def components_layers(cell: Cell) -> int | None:
    """How many layers the cell's language model has, where its settings say so."""
    layers = getattr(cell.components["model"], "layers", None)
    return layers if isinstance(layers, int) else None


def check_layers(scope: str | Sequence[str], layers: int | None) -> None:
    """Raises `ConfigError` for `layers.7` where the model has fewer; what the settings don't say is checked by the merge."""
    for part in [scope] if isinstance(scope, str) else scope:
        last = re.fullmatch(r"layers\.(?:\d+-)?(\d+)", part)
        if last and layers is not None and int(last[1]) >= layers:
            raise ConfigError(f"merge.scope={part}: the model has layers 0 to {layers - 1}")


def merged_roles(cell: Cell) -> tuple[str, ...]:
    models = cell.components["merge"].models
    return cell.roles.pair if models == "pair" else tuple(models)


def carrier_role(cell: Cell) -> str:
    carrier = cell.components["merge"].carrier
    return cell.roles.unmerged if carrier == "unmerged" else str(carrier)


def without_roles(method: Component) -> dict[str, Any]:
    """A merge method's spec without the roles, which the parents' keys stand for."""
    spec = {k: v for k, v in spec_of(method).items() if k not in ("base", "models", "carrier", "weights")}
    if isinstance(spec.get("scope"), str):
        spec["scope"] = [spec["scope"]]  # one part is a list of one
    return spec


def worker_settings(method: Component, weights: Sequence[float]) -> dict[str, Any]:
    return {**settings_of(method), "weights": list(weights)}

"""Hydra's side: a sweeper that composes every cell once, a launcher that gets all of them before anything runs, and the configs
of installed packages.

Hydra looks for plug-ins in a package named `hydra_plugins`; these three are registered under that name without one.
"""

from __future__ import annotations

import copy
import dataclasses
import importlib
import re
import sys
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.errors import ConfigCompositionException, HydraException
from hydra.plugins.config_source import ConfigResult
from hydra.plugins.launcher import Launcher
from hydra.plugins.search_path_plugin import SearchPathPlugin
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from vlsafe.cluster.settings import SlurmSettings
from vlsafe.errors import ConfigError
from vlsafe.plugins import conf_folders
from vlsafe.settings import closest, settings_of

ALIAS = "hydra_plugins.vlsafe"


@dataclasses.dataclass(frozen=True)
class Grid:
    """All cells of a command: composed configs, the settings that differ between them, and the overrides as they were typed."""

    configs: list[DictConfig]
    swept: list[str]
    overrides: list[str]
    launcher: Mapping[str, Any] | None = None  # settings of one that hands the plan's stages to another machine
    hand_out: Callable[[Sequence[int], str], None] | None = None  # runs cells as jobs of their own, under a sweep's name


def swept_keys(job_overrides: Sequence[Sequence[str]]) -> list[str]:
    """The dotted names of the overrides that have more than one value, in the order in which they were given."""
    values: dict[str, set[str]] = {}
    for overrides in job_overrides:
        for override in overrides:
            key, _, value = override.lstrip("+").partition("=")
            values.setdefault(key, set()).add(value)
    return [key for key, seen in values.items() if len(seen) > 1]


class GridSweeper(Sweeper):
    """The product of all `a,b,c` overrides, as Hydra's basic sweeper's, handed to the launcher at once and composed once."""

    held_back: ClassVar[list[str]] = []

    def __init__(self, params: dict[str, str] | None = None, exclude: list[str] | None = None) -> None:
        self.params, self.exclude = params or {}, exclude or []

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.loader, self.master, self.task_function = hydra_context.config_loader, config, task_function
        self.handed_to: Launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> Any:
        from hydra._internal.core_plugins.basic_sweeper import BasicSweeper

        parser = OverridesParser.create(config_loader=self.loader)
        overrides = parser.parse_overrides([*(f"{k}={v}" for k, v in self.params.items()), *arguments, *self.held_back])
        batch = BasicSweeper.split_arguments(overrides, None)[0]
        if not batch:
            raise ConfigError("the grid is empty: an override has no values")
        jobs = without(batch, self.exclude)
        if isinstance(self.handed_to, LocalLauncher):
            return self.handed_to.launch(jobs, initial_job_idx=0)
        return self.hand_out(jobs)

    def hand_out(self, jobs: Sequence[Sequence[str]]) -> Any:
        """For one of Hydra's own launchers: the cells are planned here all the same, and each is then a job of its own."""
        with yaml_read_once():
            composed = compose_each(self.loader, self.master, jobs)

        def hand_out(cells: Sequence[int], sweep: str) -> None:
            own = [[o for o in composed[i][1] if o.lstrip("+").partition("=")[0] != "sweep"] for i in cells]
            for job in self.handed_to.launch([[*overrides, f"sweep='{sweep}'"] for overrides in own], initial_job_idx=0):
                _ = job.return_value  # raises what the job raised

        overrides = [*self.master.hydra.overrides.task, *self.held_back]
        return self.task_function(Grid([c for c, _ in composed], swept_keys(jobs), overrides, hand_out=hand_out))


def without(batch: Sequence[Sequence[str]], exclude: Sequence[str]) -> list[Sequence[str]]:
    """The jobs that no rule leaves out. `safety_tune=dpo,kto safety_tune.order=joint` leaves out those that have one of the
    values of each setting it names. Raises `ConfigError` for a rule that can't be read
    or names what no job sets, and where nothing is left."""
    jobs = [dict(override.lstrip("+").partition("=")[::2] for override in job) for job in batch]
    rules = []
    for text in exclude:
        rule = {name: values.split(",") for name, _, values in (part.partition("=") for part in text.split())}
        if not rule or [""] in rule.values():
            raise ConfigError(f"hydra.sweeper.exclude: '{text}' is no rule; write SETTING=VALUE[,VALUE...] [SETTING=...]")
        for name in rule:
            if not any(name in values for values in jobs):
                known = list(dict.fromkeys(key for values in jobs for key in values))
                raise ConfigError(f"hydra.sweeper.exclude: '{text}': no override sets {name}; {closest(name, known)}")
        rules.append(rule)
    kept = [
        job
        for job, values in zip(batch, jobs, strict=True)
        if not any(all(same_value(values.get(name), allowed) for name, allowed in rule.items()) for rule in rules)
    ]
    if not kept:
        raise ConfigError("the grid is empty: hydra.sweeper.exclude leaves no cell")
    return kept


def same_value(value: str | None, allowed: Sequence[str]) -> bool:
    """Whether a value is one of those, as text or as a number (`0.05` is `0.050`)."""
    if value is None or value in allowed:
        return value is not None
    try:
        return float(value) in [float(a) for a in allowed if re.fullmatch(r"[-+.\deE]+", a)]
    except ValueError:
        return False


class LocalLauncher(Launcher):
    """Composes all cells and hands them over together: they are validated and planned before anything runs."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.hydra_context, self.task_function, self.config = hydra_context, task_function, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Any:
        with yaml_read_once():
            composed = compose_all(self.hydra_context.config_loader, self.config, job_overrides)
        # The task function is made to take all cells; in a job of one of Hydra's own launchers it gets a config.
        overrides = [*self.config.hydra.overrides.task, *GridSweeper.held_back]
        return [self.task_function(Grid(composed, swept_keys(job_overrides), overrides, self.settings))]

    @property
    def settings(self) -> Mapping[str, Any] | None:
        return None


class SlurmLauncher(LocalLauncher):
    """Hands all cells over as well; each unique stage of their plan becomes a Slurm job (`vlsafe/cluster/`)."""

    def __init__(self, **settings: Any) -> None:
        self.given = settings

    @property
    def settings(self) -> Mapping[str, Any] | None:
        plain = OmegaConf.to_container(OmegaConf.create(self.given), resolve=True)
        assert isinstance(plain, dict)
        return {str(name): value for name, value in plain.items()}


class InstalledConfigs(SearchPathPlugin):
    """Configs of installed plug-ins are found like our own, which come first; any `hydra.searchpath` comes last."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        for folder, plugin in conf_folders().items():
            search_path.append(plugin.package, f"file://{folder}")


def compose_all(loader: Any, master: DictConfig, job_overrides: Sequence[Sequence[str]]) -> list[DictConfig]:
    return [config for config, _ in compose_each(loader, master, job_overrides)]


def compose_each(loader: Any, master: DictConfig, job_overrides: Sequence[Sequence[str]]) -> list[tuple[DictConfig, list[str]]]:
    """One config for each job, and the overrides that went into it. A setting that the option of one cell doesn't have
    (`merge.density` where merge=linear) is left out of that cell, as long as some other cell has it; one that no cell has is an
    error."""
    composed = list[tuple[DictConfig, list[str]]]()
    refused, taken = dict[str, ConfigCompositionException](), set[str]()
    compose = OncePerChoice(loader, master)
    for job in job_overrides:
        overrides = list(job)
        while True:
            try:
                composed.append((compose(overrides), overrides))
                break
            except ConfigCompositionException as error:
                match = re.search(r"Could not override '([^']+)'", str(error))
                fewer = [o for o in overrides if match is None or o.partition("=")[0] != match[1]]
                if match is None or len(fewer) == len(overrides):
                    raise
                refused.setdefault(match[1], error)
                overrides = fewer
        taken |= {o.partition("=")[0] for o in overrides}
    for key, refusal in refused.items():
        if key not in taken:
            raise refusal
    return composed


class OncePerChoice:
    """Composes a job as Hydra does, but each choice of options once only: values, which Hydra sets on what it has composed, are
    set on a copy. A sweep over seeds and densities composes in a fraction of the time."""

    def __init__(self, loader: Any, master: DictConfig) -> None:
        self.loader, self.master = loader, master
        self.composed: dict[tuple[str, ...], DictConfig] = {}

    def __call__(self, overrides: Sequence[str]) -> DictConfig:
        parsed = OverridesParser.create(config_loader=self.loader).parse_overrides(list(overrides))
        # As Hydra tells them apart; a value for hydra itself (its search path, for one) may change what is composed.
        values = [p for p in parsed if not (p.is_hydra_override() or self.loader.repository.group_exists(p.key_or_group))]
        choices = tuple(str(p.input_line) for p in parsed if p not in values)
        if choices not in self.composed:
            self.composed[choices] = self.loader.load_sweep_config(self.master, list(choices))
        config = copy.deepcopy(self.composed[choices])
        self.loader._apply_overrides_to_config(values, config)
        return config


def take_over(argv: list[str]) -> None:
    """Makes every run a multirun, and keeps settings of the grid's groups back for the sweeper: Hydra would apply them to its
    master config, whose default options need not have them (`merge=ties,linear merge.density=0.2`)."""
    flags = {a for a in argv[1:] if a.startswith("-")}
    if flags - {"-m", "--multirun"}:
        return  # --help, --cfg and the like show a single config
    held = [a for a in argv[1:] if re.match(r"\+{0,2}(model|adaptation|safety_tune|merge)\.[^=]+=", a)]
    GridSweeper.held_back = held
    argv[1:] = [a for a in argv[1:] if a not in held and a not in flags] + ["--multirun"]


def search_path(argv: list[str]) -> list[Path]:
    """The folders that a command adds by `hydra.searchpath`; where it can't be read, Hydra will say so."""
    given = [a for a in argv[1:] if re.match(r"\+{0,2}hydra\.searchpath=", a)]
    try:
        values = [override.value() for override in OverridesParser.create().parse_overrides(given)]
    except HydraException:
        return []
    paths = [str(path) for value in values if isinstance(value, list) for path in value]
    return [Path(path.removeprefix("file://")) for path in paths if path.startswith("file://") or "://" not in path]


@contextmanager
def yaml_read_once() -> Iterator[None]:
    """Within it, each YAML file is parsed once: that is nearly half of the time to compose a cell."""
    # Hydra loads its own plug-ins anew when it first looks for them, so that an import at the top would get another class.
    from hydra._internal.core_plugins.file_config_source import FileConfigSource

    original = FileConfigSource.load_config
    results: dict[tuple[str, str], ConfigResult] = {}

    def load_config(self: FileConfigSource, config_path: str) -> ConfigResult:
        key = (self.path, config_path)
        if key not in results:
            results[key] = original(self, config_path)
        return dataclasses.replace(results[key], config=copy.deepcopy(results[key].config))

    FileConfigSource.load_config = load_config  # type: ignore[method-assign]
    try:
        yield
    finally:
        FileConfigSource.load_config = original  # type: ignore[method-assign]


def register_plugins() -> None:
    module = sys.modules[__name__]
    try:
        importlib.import_module("hydra_plugins")
    except ImportError:  # no other plug-in is installed
        package = types.ModuleType("hydra_plugins")
        package.__path__ = []
        sys.modules["hydra_plugins"] = package
    sys.modules[ALIAS] = module
    for plugin in (GridSweeper, LocalLauncher, SlurmLauncher, InstalledConfigs):
        plugin.__module__ = ALIAS
        Plugins.instance().register(plugin)
        plugin.__module__ = __name__  # a job of submitit's unpickles it by a name that can be imported
    store = ConfigStore.instance()
    store.store(
        group="hydra/sweeper",
        name="grid",
        node={"_target_": f"{ALIAS}.GridSweeper", "params": None, "exclude": None},
        provider="vlsafe",
    )
    store.store(group="hydra/launcher", name="local", node={"_target_": f"{ALIAS}.LocalLauncher"}, provider="vlsafe")
    slurm = {"_target_": f"{ALIAS}.SlurmLauncher", **settings_of(SlurmSettings())}
    store.store(group="hydra/launcher", name="slurm", node=slurm, provider="vlsafe")

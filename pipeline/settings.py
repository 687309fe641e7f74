"""The settings of the whole program: one typed tree out of the rooms' frozen models.

`load()` is called once per process by the command that runs; rooms get their part as a value and never read the
environment themselves. Order of strength: environment (`EXPLORER_…`), TOML file, what follows from the profile and
from a running local stack, defaults.
"""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from api.config import ApiSettings
from consumers.config import MaintenanceConfig, ReplayConfig, WriterConfig
from lake.steps import CRASHPOINT_VARIABLE
from pipeline.errors import SettingsError
from pipeline.kafka import KafkaSettings
from pipeline.logs import LogSettings
from pipeline.registry_settings import RegistrySettings
from pipeline.runtime import SUPERVISOR_VARIABLE
from pipeline.settings_tree import Layer, Leaf, Value, document_layer, environment_layer, leaves, resolve
from pipeline.supervisor import SupervisorSettings
from producers.config import ProducerSettings, SourceSettings
from simulator.config import SimulatorSettings

CONFIG_VARIABLE = "EXPLORER_CONFIG"
PROFILE_VARIABLE = "EXPLORER_PROFILE"
# Names with a meaning outside the tree: where settings are, who supervises, where tests let a process die.
OUTSIDE_THE_TREE = frozenset({CONFIG_VARIABLE, PROFILE_VARIABLE, SUPERVISOR_VARIABLE, CRASHPOINT_VARIABLE})
# Names that do not follow from the place in the tree.
VARIABLES: dict[tuple[str, ...], str] = {("schema_registry", "url"): "EXPLORER_SCHEMA_REGISTRY"}
CHOSEN = ("api.port", "simulator.port")
PROFILES = ("live", "demo")


class BrokerSettings(BaseModel):
    """The embedded broker, used when no other is named by EXPLORER_KAFKA_BOOTSTRAP."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    home: Path = Field(Path(".local/live/kafka"), description="folder of the embedded broker's data and logs")
    port: int | None = Field(None, ge=1, le=65535, description="client port; a free one is chosen once and remembered")
    heap_mb: int = Field(384, ge=128, le=512, description="Java heap of the embedded broker in MB")
    ready_seconds: float = Field(120.0, gt=0, le=3600, description="how long the embedded broker may take to be ready")


class Settings(BaseModel):
    """Every setting of every process. Built by `load`, never changed afterwards."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    state: Path = Field(Path(".local/live"), description="folder of everything this installation writes")
    lake: str = Field(description="folder of the Parquet files; <state>/lake unless set")
    manifest: str = Field(description="SQLite path or postgresql:// URL; <lake>/manifest.sqlite unless set")
    schema_registry: RegistrySettings | None = None
    source: SourceSettings
    kafka: KafkaSettings
    broker: BrokerSettings
    producer: ProducerSettings
    writer: WriterConfig
    maintain: MaintenanceConfig
    replay: ReplayConfig
    api: ApiSettings
    simulator: SimulatorSettings
    supervisor: SupervisorSettings
    log: LogSettings

    @property
    def status_folder(self) -> Path:
        """Where processes write their reports."""
        return self.state / "status"

    @property
    def log_folder(self) -> Path:
        """Where supervised processes write their logs."""
        return self.state / "logs"


@dataclass(frozen=True)
class Loaded:
    """The settings, the profile they are for, and where each value came from."""

    settings: Settings
    profile: str
    values: tuple[Value, ...]

    def origin(self, dotted: str) -> str:
        """The layer that set a value; "default" when none did."""
        return next(value.origin for value in self.values if value.leaf.dotted == dotted)


def all_settings() -> list[Leaf]:
    """Every value that can be set, under the names of the design."""
    return list(leaves(Settings, variables=VARIABLES))


def load(environ: Mapping[str, str] | None = None, *, overrides: Mapping[str, Any] | None = None) -> Loaded:
    """Reads the environment and the TOML file it names, and builds the tree.

    `overrides` are values from the command line by dotted name, the strongest layer. Raises SettingsError, with every
    wrong value named, for unknown names and values that do not fit.
    """
    environ = os.environ if environ is None else environ
    profile = environ.get(PROFILE_VARIABLE) or "live"
    if profile not in PROFILES:
        raise SettingsError(f"{PROFILE_VARIABLE}={profile!r} is not a profile", f"use one of {', '.join(PROFILES)}")
    all_leaves = all_settings()
    layers: list[Layer] = []
    config = environ.get(CONFIG_VARIABLE)
    if config:
        layers.append(document_layer(Settings, _read_toml(Path(config)), config))
    layers.append(environment_layer({leaf.environment: leaf for leaf in all_leaves}, environ, OUTSIDE_THE_TREE))
    given = {tuple(name.split(".")): value for name, value in (overrides or {}).items()}
    layers.append(Layer("command line", given))
    layers.insert(0, _derived(profile, layers))
    settings, values = resolve(Settings, layers, all_leaves)
    return Loaded(settings, profile, tuple(values))


def with_profile(profile: str | None) -> Loaded:
    """As `load`, for the profile that a command was given; child processes inherit it. None keeps the one in force."""
    if profile is not None:
        os.environ[PROFILE_VARIABLE] = profile
    return load()


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(
            f"the settings file {path} cannot be read: {error.strerror}", f"correct {CONFIG_VARIABLE}"
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"the settings file {path} is not TOML: {error}", "correct the file") from None


def _derived(profile: str, layers: list[Layer]) -> Layer:
    """Values that follow from others: folders from the state folder, addresses from what runs there."""

    def given(*path: str) -> Any:
        for layer in reversed(layers):
            if path in layer.values:
                return layer.values[path]
        return None

    state = Path(given("state") or Path(".local") / profile)
    lake = str(given("lake") or state / "lake")
    broker_home = Path(given("broker", "home") or state / "kafka")
    values: dict[tuple[str, ...], Any] = {
        ("state",): state,
        ("lake",): lake,
        ("manifest",): str(given("manifest") or Path(lake) / "manifest.sqlite"),
        ("simulator", "data_dir"): state / "simulator",
        ("api", "state_dir"): state / "api",
        ("broker", "home"): broker_home,
        ("kafka", "bootstrap"): _embedded_bootstrap(broker_home),
    }
    values |= _chosen(state)
    if profile == "demo":
        simulator = (
            values.get(("simulator", "port"))
            or given("simulator", "port")
            or SimulatorSettings.model_fields["port"].default
        )
        values["source", "hosts"] = [f"ws://127.0.0.1:{simulator}"]
        values["source", "start"] = "oldest"
        values["source", "backoff_longest"] = 2.0
        values["simulator", "malformed_share"] = 0.0005
    return Layer(f"profile {profile}", values)


def chosen_file(state: Path) -> Path:
    """Where `up` remembers the ports it chose because the usual ones were taken."""
    return state / "chosen.json"


def _chosen(state: Path) -> dict[tuple[str, ...], Any]:
    try:
        found = json.loads(chosen_file(state).read_text(encoding="utf-8"))
        return {tuple(name.split(".")): int(port) for name, port in found.items() if name in CHOSEN}
    except (OSError, ValueError, AttributeError, TypeError):
        return {}


def _embedded_bootstrap(home: Path) -> str:
    """The address that the embedded broker of `home` remembers; Kafka's usual one before its first start."""
    try:
        return f"127.0.0.1:{int(json.loads((home / 'broker.json').read_text(encoding='utf-8'))['port'])}"
    except (OSError, ValueError, KeyError, TypeError):
        return "127.0.0.1:9092"

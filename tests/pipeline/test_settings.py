"""Settings: layers, names, origins, and errors that say what to do."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field, SecretStr

from pipeline.errors import SettingsError
from pipeline.settings import Settings, all_settings, load
from pipeline.settings_tree import Layer, environment_layer, leaves, nested_model, resolve


class Inner(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    port: int = Field(8080, ge=1, le=65535, description="port")
    names: tuple[str, ...] = Field((), description="names")
    token: SecretStr | None = Field(None, description="token")
    url: str | None = Field(None, description="url")


class Outer(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    inner: Inner
    label: str = Field("x", description="label")


KNOWN = {leaf.environment: leaf for leaf in leaves(Outer)}


def test_every_setting_has_one_environment_name_and_a_meaning() -> None:
    found = all_settings()
    assert len({leaf.environment for leaf in found}) == len(found)
    assert [leaf.dotted for leaf in found if not leaf.description.strip()] == []


def test_every_number_has_a_lower_bound() -> None:
    """A wait, buffer or retry without one could be set to what means "for ever" or "none" by accident."""
    unbounded = []
    for leaf in all_settings():
        model: type[BaseModel] = Settings
        for name in leaf.path[:-1]:
            model = nested_model(model.model_fields[name].annotation) or model
        schema = model.model_json_schema()["properties"][leaf.path[-1]]
        choices = schema.get("anyOf", [schema])
        numbers = [choice for choice in choices if choice.get("type") in ("integer", "number")]
        unbounded += [
            leaf.environment
            for choice in numbers
            if not {"minimum", "exclusiveMinimum"} & (choice.keys() | schema.keys())
        ]
    assert unbounded == []


def test_shared_names_of_the_design_exist() -> None:
    names = {leaf.environment for leaf in all_settings()}
    shared = """EXPLORER_SOURCE_HOSTS EXPLORER_SOURCE_PROTOCOL EXPLORER_KAFKA_BOOTSTRAP EXPLORER_SCHEMA_REGISTRY
        EXPLORER_LAKE EXPLORER_MANIFEST EXPLORER_API_HOST EXPLORER_API_PORT"""
    assert set(shared.split()) <= names


def test_environment_is_stronger_than_the_file_and_origins_are_told(tmp_path: Path) -> None:
    config = tmp_path / "settings.toml"
    config.write_text('[writer]\nbatch_rows = 7\nbatch_bytes = 9\n[source]\nhosts = ["ws://a:1"]\n')
    loaded = load({"EXPLORER_CONFIG": str(config), "EXPLORER_WRITER_BATCH_ROWS": "8"})
    assert (loaded.settings.writer.batch_rows, loaded.origin("writer.batch_rows")) == (8, "environment")
    assert (loaded.settings.writer.batch_bytes, loaded.origin("writer.batch_bytes")) == (9, str(config))
    assert loaded.settings.source.hosts == ("ws://a:1",)
    assert loaded.origin("writer.group") == "default"


def test_command_line_is_the_strongest_layer() -> None:
    loaded = load({"EXPLORER_WRITER_BATCH_ROWS": "8"}, overrides={"writer.batch_rows": 9})
    assert (loaded.settings.writer.batch_rows, loaded.origin("writer.batch_rows")) == (9, "command line")


def test_lists_are_split_at_commas() -> None:
    loaded = load({"EXPLORER_SOURCE_HOSTS": "wss://one.example, ws://two.example:6008"})
    assert loaded.settings.source.hosts == ("wss://one.example", "ws://two.example:6008")


def test_a_group_that_may_be_absent_is_absent_until_something_sets_it() -> None:
    assert load({}).settings.schema_registry is None
    loaded = load(
        {"EXPLORER_SCHEMA_REGISTRY": "http://registry.example:8081", "EXPLORER_SCHEMA_REGISTRY_PASSWORD": "x"}
    )
    assert loaded.settings.schema_registry is not None
    assert loaded.settings.schema_registry.url == "http://registry.example:8081"
    assert loaded.origin("schema_registry.url") == "environment"
    with pytest.raises(SettingsError, match=r"schema_registry\.url.*Field required|EXPLORER_SCHEMA_REGISTRY"):
        load({"EXPLORER_SCHEMA_REGISTRY_USERNAME": "me"})


def test_manifest_follows_the_lake_and_the_lake_follows_the_state() -> None:
    loaded = load({"EXPLORER_STATE": "data"})
    assert (loaded.settings.lake, loaded.settings.manifest) == ("data/lake", "data/lake/manifest.sqlite")
    assert load({"EXPLORER_LAKE": "elsewhere"}).settings.manifest == "elsewhere/manifest.sqlite"
    assert load({"EXPLORER_PROFILE": "demo"}).settings.lake == ".local/demo/lake"


def test_an_unknown_name_suggests_the_nearest() -> None:
    with pytest.raises(SettingsError, match=r"EXPLORER_KAFKA_BOOTSTRAPS.*did you mean EXPLORER_KAFKA_BOOTSTRAP"):
        load({"EXPLORER_KAFKA_BOOTSTRAPS": "x:1"})


def test_an_unknown_name_in_the_file_suggests_the_nearest(tmp_path: Path) -> None:
    config = tmp_path / "settings.toml"
    config.write_text("[writer]\nbatch_row = 7\n")
    with pytest.raises(SettingsError, match=r"writer\.batch_row is not a setting; did you mean writer\.batch_rows"):
        load({"EXPLORER_CONFIG": str(config)})


@pytest.mark.parametrize("text", ["[writer\n", "\x00"])
def test_a_broken_file_is_named(tmp_path: Path, text: str) -> None:
    config = tmp_path / "settings.toml"
    config.write_text(text)
    with pytest.raises(SettingsError, match="is not TOML"):
        load({"EXPLORER_CONFIG": str(config)})
    with pytest.raises(SettingsError, match="cannot be read"):
        load({"EXPLORER_CONFIG": str(tmp_path / "absent.toml")})


def test_a_wrong_value_names_the_variable_and_the_rule() -> None:
    with pytest.raises(SettingsError, match=r"EXPLORER_WRITER_BATCH_ROWS='many' \(environment\): .*integer"):
        load({"EXPLORER_WRITER_BATCH_ROWS": "many"})
    with pytest.raises(SettingsError, match="EXPLORER_PROFILE='prod'"):
        load({"EXPLORER_PROFILE": "prod"})


def test_secrets_are_never_shown() -> None:
    layer = Layer("file", {("inner", "token"): "s3cret", ("inner", "url"): "postgresql://me:s3cret@host/db"})
    _, values = resolve(Outer, [layer])
    shown = json.dumps({value.leaf.dotted: value.shown() for value in values})
    assert "s3cret" not in shown
    assert "postgresql://me:********@host/db" in shown
    with pytest.raises(SettingsError) as caught:
        resolve(Outer, [Layer("file", {("inner", "token"): ["s3cret"]})])
    assert "s3cret" not in str(caught.value)


@given(port=st.integers(1, 65535), label=st.text(max_size=20))
def test_environment_text_round_trips(port: int, label: str) -> None:
    environ = {"EXPLORER_INNER_PORT": str(port), "EXPLORER_LABEL": label, "OTHER": "x"}
    settings, values = resolve(Outer, [environment_layer(KNOWN, environ, frozenset())])
    assert (settings.inner.port, settings.label) == (port, label)
    assert {value.leaf.dotted for value in values if value.origin == "environment"} == {"inner.port", "label"}

"""The manifest: commands that exist, menus that napari has, settings that are read."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import pytest
from napari._app_model.constants import MenuId
from napari.settings._plugin_config_generator import plugin_configuration_generator
from npe2 import PluginManager, PluginManifest

import napari_pancreas_seg
from napari_pancreas_seg._napari import commands as commands_module
from napari_pancreas_seg._napari import settings
from napari_pancreas_seg._napari.correct.keys import ACTIONS

PATH = Path(napari_pancreas_seg.__file__).with_name("napari.yaml")


@pytest.fixture(scope="module")
def manifest() -> PluginManifest:
    return PluginManifest.from_file(PATH)


def test_npe2_takes_the_manifest(manifest):
    manifest.validate_imports()
    commands = {command.id: command for command in manifest.contributions.commands}
    for command in commands.values():
        module, name = command.python_name.split(":")
        assert callable(getattr(import_module(module), name))
        if module == commands_module.__name__ and name not in vars(commands_module):
            assert name in {action.name for action in ACTIONS}
    with pytest.raises(AttributeError):
        commands_module._nothing  # noqa: B018


def test_menus_are_those_that_napari_opens_to_plugins(manifest):
    ids = {command.id for command in manifest.contributions.commands}
    assert set(manifest.contributions.menus) == {"napari/layers/segment", "napari/layers/measure"}
    for menu, items in manifest.contributions.menus.items():
        assert menu in MenuId.contributables()
        assert all(item.command in ids for item in items)


def test_the_panel_has_one_name_however_it_is_opened(manifest):
    # napari's menu says "<widget> (<display name>)", add_plugin_dock_widget "<widget> (<name>)".
    (widget,) = manifest.contributions.widgets
    assert manifest.display_name == manifest.name != widget.display_name


def test_every_setting_of_the_manifest_is_read(manifest, monkeypatch):
    plugins = PluginManager()
    plugins.register(manifest)
    made = plugin_configuration_generator(plugins)[manifest.name](config_path=None)
    monkeypatch.setattr(settings, "get_plugin_settings", lambda name: made)
    source = "".join(
        file.read_text(encoding="utf-8") for file in Path(settings.__file__).parent.rglob("*.py")
    )
    for name in manifest.contributions.configurations["panel"].properties:
        assert settings.preference(name) is True
        setattr(made.panel, name, False)
        assert settings.preference(name) is False
        assert f'preference("{name}")' in source


def test_without_the_plugin_s_settings_everything_is_as_by_default(monkeypatch):
    def missing(name):
        raise KeyError(name)

    monkeypatch.setattr(settings, "get_plugin_settings", missing)
    assert settings.preference("warm_up") is True

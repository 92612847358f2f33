"""The form for how to segment; its fields are those of `Options`."""

from __future__ import annotations

from magicgui.widgets import CheckBox, ComboBox, Container

from napari_pancreas_seg.inference.result import Options

__all__ = ["options_form", "options_of"]


def options_form() -> Container:
    """Make the form."""
    return Container(
        widgets=[
            ComboBox(
                name="device",
                label="Device",
                choices=[("automatic", "auto"), ("CPU", "cpu")],
                tooltip="Automatic takes a GPU if there is one.",
            ),
            CheckBox(
                name="postprocess",
                text="Smooth along z, keep the largest piece",
                value=True,
                tooltip="Without it the mask is what the network says slice by slice.",
            ),
        ],
        labels=True,
    )


def options_of(form: Container) -> Options:
    """Read the form."""
    return Options(**form.asdict())

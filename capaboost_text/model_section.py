"""The section `model` of a run on text."""

from __future__ import annotations

from pydantic import Field

from capaboost_core.settings.base import Settings, Text


class ModelSection(Settings):
    """The frozen encoder.

    Raises:
        UserError: If a setting is unknown or of a wrong type.
    """

    name: Text = Field(description="A name on the hub, or a folder that save_pretrained wrote.")

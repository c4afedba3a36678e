"""The errors of this room."""

from __future__ import annotations

from trimtab.errors import BadInput

__all__ = ["ArtefactError", "UnsupportedOperator"]


class UnsupportedOperator(BadInput):
    """The engine has no such operator; the text names the operator and the layer, and lists what there is."""


class ArtefactError(BadInput):
    """The file is not a readable trimtab artefact."""

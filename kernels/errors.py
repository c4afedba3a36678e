"""The errors of this room."""

from __future__ import annotations

from trimtab.errors import BadInput

__all__ = ["ArtefactError"]


class ArtefactError(BadInput):
    """The file is not a readable trimtab artefact."""

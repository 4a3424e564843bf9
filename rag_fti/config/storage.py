"""Where the shared storage lies."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from rag_fti.config.section import Section


class StorageConfig(Section):
    """Locations of the feature store, the datasets and the model registry."""

    root: Path = Path("data")
    """Directory of all stores. ``RAG_FTI_ROOT`` replaces the default."""
    features: str = ""
    """LanceDB URI: a directory or an object-store URI (``s3://…``, ``gs://…``, ``az://…``).
    Empty: ``<root>/features``."""
    datasets: str = ""
    """Directory of instruction datasets; object-store URIs are refused so far. Empty:
    ``<root>/datasets``."""
    registry: str = ""
    """Directory of the model registry; object-store URIs are refused so far. Empty:
    ``<root>/registry``."""
    options: dict[str, str] = Field(default_factory=dict)
    """Object-store options handed to LanceDB (region, endpoint…). Put secrets into the
    environment instead."""

    @property
    def features_uri(self) -> str:
        """The LanceDB URI in force."""
        return self.features or str(self.root / "features")

    @property
    def datasets_uri(self) -> str:
        """The datasets root in force."""
        return self.datasets or str(self.root / "datasets")

    @property
    def registry_uri(self) -> str:
        """The registry root in force."""
        return self.registry or str(self.root / "registry")

    @property
    def reports(self) -> Path:
        """Contract reports of runs: ``<root>/reports/<pipeline>/<run id>.json``."""
        return self.root / "reports"

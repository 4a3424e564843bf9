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
    """Instruction datasets: a directory or an object-store URI (extra ``object-store``). Empty:
    ``<root>/datasets``."""
    registry: str = ""
    """Model registry: a directory or an object-store URI (extra ``object-store``). Empty:
    ``<root>/registry``."""
    cache: Path | None = None
    """Directory for local copies of dataset and model versions that are in an object store. Empty:
    ``<root>/cache/versions``."""
    options: dict[str, str] = Field(default_factory=dict)
    """Object-store options (region, endpoint…) of all three. Put secrets into the environment
    instead."""

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
    def cache_directory(self) -> Path:
        """The directory of local copies in force."""
        return self.cache or self.root / "cache" / "versions"

    @property
    def reports(self) -> Path:
        """Contract reports of runs: ``<root>/reports/<pipeline>/<run id>.json``."""
        return self.root / "reports"

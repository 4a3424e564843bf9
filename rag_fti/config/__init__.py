"""Configuration: one :class:`Settings` tree with a section per pipeline.

Values come from defaults, then a profile, then a YAML file, then ``key=value`` overrides.
Importing this package loads neither torch nor lancedb.
"""

from rag_fti.config.loading import load_settings
from rag_fti.config.settings import Settings

__all__ = ["Settings", "load_settings"]

"""From a folder or hub id to a `ModelConfig` and one rank's weights."""

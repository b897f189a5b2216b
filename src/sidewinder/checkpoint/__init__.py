"""From a folder, GGUF file or hub id to a `ModelConfig` and one rank's weights."""

"""Settings, and the files that they are read from: TOML and vblade's."""

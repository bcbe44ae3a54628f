"""The subcommands of ``aoe``."""

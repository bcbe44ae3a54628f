"""``aoe lab`` and its subcommands."""

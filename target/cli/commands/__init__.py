"""The subcommands of ``aoe-target``, a file each."""

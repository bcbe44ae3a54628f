"""The lab: the lifetime of pages in bios, skbs and NICs, under page-count policies."""

"""Copy-on-write overlays."""

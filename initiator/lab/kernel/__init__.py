"""The modelled kernel: page allocator, slab, submitters, policies, journal."""

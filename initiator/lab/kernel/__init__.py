"""The modelled kernel: page allocator, slab, skb clones, NIC, policies, submitters."""

"""The page-lifetime lab: what happens to a page in bio, skb and network card."""

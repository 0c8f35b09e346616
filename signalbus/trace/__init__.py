"""Where a signal went: the store of the ledger, traces made of its facts, and ways to show them."""

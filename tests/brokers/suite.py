"""The whole contract suite, whose modules add their behaviours to one list when they are imported."""

from __future__ import annotations

from tests.brokers import contract, contract_dead, contract_ledger, contract_liveness, contract_requests

MODULES = (contract, contract_dead, contract_ledger, contract_liveness, contract_requests)
SUITE = contract.CONTRACT
NAMES = [behaviour.__name__ for behaviour in SUITE]

"""The router: a daemon beside RabbitMQ, for what no single bus can do. So far it keeps the ledger."""

"""The durable store: tables, migrations, the event log, and the ledger that changes them."""

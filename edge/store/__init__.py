"""The state folder (ledger, queue, traces) and the model store; see the modules."""

"""The gateway of a pool: where leases are redeemed, and so where money is counted.

    serve         one process, one event loop
    server        dispatches requests; health and metrics
    admin         what the hub asks: seal, epoch, state, revoke, reconcile, adjust
    forwarding    one call: hold, forward, settle
    calls | bounds | usage | upstreams    who asks; what it can cost; what it did cost; who answers
    register      the file, and group commit
    book          the rules of the register
    records       its tables and values
    client        HTTP/1.1 to an upstream
    config        gateway.yaml
    refusals      why a request is refused

The interface to the hub is the signed ``Lease`` and the paths of ``admin``; to a device the lease
and the headers of ``calls``.
"""

"""A pool of this project's engine, or of vLLM, that scales out on Ray Serve.

    serve       puts replicas on Ray and serves HTTP until told to end; the only room that knows Ray
    replica     one copy of the model, as Ray runs it
    server      OpenAI's interface over HTTP
    again       asks another replica where one died
    asked       what a request asks for; what comes back
    engine      what a replica needs of an engine; this project's own
    chat        a conversation as a prompt, by the model's template
    child       a server of OpenAI's interface as an engine: vLLM
    guard       ends such a server with the process that started it
    metrics     the pool's own count
    config      pool.yaml

Knows no leases and no prices: money is counted at the gateway in front of it.
"""

import socket

import pytest

from edge.errors import ConfigError
from edge_sync.hub.home import Hub
from edge_sync.server.serve import serve


@pytest.fixture
def hub(memory_path):
    with Hub.create(memory_path / "hub") as hub:
        yield hub


@pytest.mark.parametrize("content", [None, "no certificate"])
def test_a_certificate_that_cannot_be_used_is_told(hub, tmp_path, content):
    path = tmp_path / "cert.pem"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ConfigError, match=r"TLS certificate .*cert\.pem") as caught:
        serve(hub, listen="127.0.0.1:0", tls_cert=path, tls_key=path)
    assert "PEM" in caught.value.hint


@pytest.mark.parametrize(
    "listen", ["127.0.0.1:taken", "127.0.0.1:x", "127.0.0.1:99999", "nohost.invalid:1"]
)
def test_an_address_that_cannot_be_listened_on_is_told(hub, listen):
    with socket.create_server(("127.0.0.1", 0)) as other:
        listen = listen.replace("taken", str(other.getsockname()[1]))
        with pytest.raises(ConfigError, match="cannot listen on") as caught:
            serve(hub, listen=listen)
    assert "8420" in caught.value.hint

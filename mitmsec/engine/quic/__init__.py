"""HTTP/3 on both legs: aioquic's connections, mitmproxy's HTTP. Loaded only where a policy has QUIC decrypted."""

from mitmsec.engine.left_out import take_in

take_in()

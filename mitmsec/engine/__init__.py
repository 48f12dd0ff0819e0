"""The worker: TLS on both legs, plaintext to the inspectors, through the embedded mitmproxy."""

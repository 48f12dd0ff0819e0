"""The worker: TLS on both legs, plaintext to the inspectors, through the embedded mitmproxy."""

from mitmsec.engine.left_out import leave_out

leave_out()

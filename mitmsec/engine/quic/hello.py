"""aioquic's hello to an origin, with the hybrid key exchange that clients have: X25519MLKEM768.

    client ── ML-KEM key ‖ X25519 share ──► server          (draft-ietf-tls-ecdhe-mlkem; its group is 0x11EC)
           ◄─ ML-KEM answer ‖ X25519 share ─                secret = ML-KEM's ‖ X25519's

Without it the proxy would make connections weaker than a program makes them that offers it. Shares of X25519 and P-256
go along, for aioquic cannot be asked for another (HelloRetryRequest). Signatures are what RFC 8446 §4.2.3 allows.
"""

from __future__ import annotations

from typing import Any

from aioquic import tls
from aioquic._buffer import Buffer

from mitmsec.engine.seams import Encapsulation

HYBRID = 0x11EC
SHARE_BYTES = 32  # of X25519
NAMES = {HYBRID: "X25519MLKEM768", 0x001D: "x25519", 0x0017: "secp256r1"}
"""As OpenSSL writes them."""
SIGNATURES = [
    tls.SignatureAlgorithm.ECDSA_SECP256R1_SHA256,
    tls.SignatureAlgorithm.RSA_PSS_RSAE_SHA256,
    tls.SignatureAlgorithm.ECDSA_SECP384R1_SHA384,
    tls.SignatureAlgorithm.RSA_PSS_RSAE_SHA384,
    tls.SignatureAlgorithm.ED25519,
    tls.SignatureAlgorithm.RSA_PKCS1_SHA256,
    tls.SignatureAlgorithm.RSA_PKCS1_SHA384,
]
IN_CERTIFICATES_ONLY = frozenset({
    tls.SignatureAlgorithm.RSA_PKCS1_SHA256, tls.SignatureAlgorithm.RSA_PKCS1_SHA384,
})  # fmt: skip

_made: Any = tls  # what makes keys there is not told to type checkers


class Hello(tls.Context):
    """A client's side. `begin` is to be called before it says anything."""

    def begin(self, kem: Encapsulation | None) -> None:
        """With `kem` it offers the hybrid group, first of all."""
        self._kem = kem
        self.group = 0
        """Which was agreed; 0: none yet."""
        self._signature_algorithms = list(SIGNATURES)

    def _client_send_hello(self, output_buf: Buffer) -> None:
        near, curve = _made.x25519.X25519PrivateKey.generate(), _made.ec.generate_private_key(_made.ec.SECP256R1())
        self._x25519_private_key, self._ec_private_keys = near, [curve]
        shares = [tls.encode_public_key(near.public_key()), tls.encode_public_key(curve.public_key())]
        if self._kem is not None:
            shares.insert(0, (HYBRID, self._kem.public + shares[0][1]))
        hello = tls.ClientHello(
            random=self.client_random,
            legacy_session_id=self.legacy_session_id,
            cipher_suites=[int(suite) for suite in self._cipher_suites],
            legacy_compression_methods=self._legacy_compression_methods,
            alpn_protocols=self._alpn_protocols,
            key_share=shares,
            server_name=self._server_name,
            signature_algorithms=[int(one) for one in self._signature_algorithms],
            supported_groups=[group for group, _ in shares],
            supported_versions=self._supported_versions,
            other_extensions=self.handshake_extensions,
        )
        self._key_schedule_proxy = tls.KeyScheduleProxy(self._cipher_suites)
        self._key_schedule_proxy.extract(None)
        with tls.push_message(self._key_schedule_proxy, output_buf):
            tls.push_client_hello(output_buf, hello)
        self._set_state(tls.State.CLIENT_EXPECT_SERVER_HELLO)

    def _client_handle_hello(self, input_buf: Buffer, output_buf: Buffer) -> None:
        message = input_buf.data_slice(0, input_buf.capacity)
        answer = tls.pull_server_hello(Buffer(data=message))
        if answer.key_share is None:
            raise tls.AlertDecodeError("ServerHello has no key share")
        self.group, share = answer.key_share
        if self.group != HYBRID or self._kem is None:
            return super()._client_handle_hello(input_buf, output_buf)
        suite = tls.negotiate(self._cipher_suites, [answer.cipher_suite], tls.AlertHandshakeFailure("cipher suite"))
        if answer.supported_version not in self._supported_versions or answer.pre_shared_key is not None:
            raise tls.AlertIllegalParameter("ServerHello agrees to what was not offered")
        assert self._key_schedule_proxy is not None
        self.key_schedule, self._key_schedule_proxy = self._key_schedule_proxy.select(suite), None
        self.key_schedule.update_hash(message)
        self.key_schedule.extract(self._hybrid_secret(self._kem, share))
        input_buf.seek(len(message))
        self._setup_traffic_protection(tls.Direction.DECRYPT, tls.Epoch.HANDSHAKE, b"s hs traffic")
        self._set_state(tls.State.CLIENT_EXPECT_ENCRYPTED_EXTENSIONS)

    def _hybrid_secret(self, kem: Encapsulation, share: bytes) -> bytes:
        assert self._x25519_private_key is not None
        try:
            far = _made.x25519.X25519PublicKey.from_public_bytes(share[-SHARE_BYTES:])
            secret: bytes = kem.shared(share[:-SHARE_BYTES]) + self._x25519_private_key.exchange(far)
        except ValueError as error:
            raise tls.AlertIllegalParameter("ServerHello has a broken key share") from error
        return secret

    def _check_certificate_verify_signature(self, verify: tls.CertificateVerify) -> None:
        if verify.algorithm in IN_CERTIFICATES_ONLY:
            raise tls.AlertIllegalParameter("a signature that TLS 1.3 has for certificates only")
        super()._check_certificate_verify_signature(verify)

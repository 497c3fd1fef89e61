"""AutoMTLS: host and plugin prove to each other who they are."""

import base64
import datetime

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

# Longer than any process runs.
_DAYS = 30 * 365


class Identity:
    """A key and a certificate of this process alone. The host has to have the key of its certificate."""

    def __init__(self, host_pem):
        self._host_pem = host_pem
        # grpcio takes no P-521, which go-plugin uses itself.
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = _certificate(key)
        self._pem = certificate.public_bytes(serialization.Encoding.PEM)
        self._der = certificate.public_bytes(serialization.Encoding.DER)
        self._key_pem = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )

    def credentials(self):
        """For the server: it takes the host alone."""
        return grpc.ssl_server_credentials(
            [(self._key_pem, self._pem)], self._host_pem, require_client_auth=True
        )

    def told(self):
        """The certificate as the first line has it."""
        return base64.b64encode(self._der).rstrip(b"=").decode()


def _certificate(key):
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.timezone.utc)
    usages = [ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH]
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(minutes=1))
        .not_valid_after(now + datetime.timedelta(days=_DAYS))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), False)
        .add_extension(x509.BasicConstraints(True, None), True)
        .add_extension(x509.ExtendedKeyUsage(usages), False)
        .sign(key, hashes.SHA256())
    )
